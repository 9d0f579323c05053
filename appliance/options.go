package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
	basecompatibility "k8s.io/component-base/compatibility"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	kcmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"kthwd/appliance/pki"
)

// The programs' names, as a person knows them.
const (
	nameEtcd              = "etcd"
	nameAPIServer         = "kube-apiserver"
	nameControllerManager = "kube-controller-manager"
	nameScheduler         = "kube-scheduler"
	nameKubernetes        = "kubernetes" // log lines of code that all three share
)

var discardLogger = logr.Discard()

// parseFlags parses a command line with a program's own flag sets.
func parseFlags(program string, sets cliflag.NamedFlagSets, args []arg) error {
	fs := pflag.NewFlagSet(program, pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	fs.Usage = func() {}
	for _, name := range sets.Order {
		fs.AddFlagSet(sets.FlagSets[name])
	}
	if err := fs.Parse(render(args)); err != nil {
		return unknownFlag(program, err)
	}
	return nil
}

var flagNotDefined = regexp.MustCompile(`(?:unknown flag: --|flag provided but not defined: -)(\S+)`)

// unknownFlag turns a parser's error into a sentence with the argument that the
// user wrote.
func unknownFlag(program string, err error) error {
	see := "see the flags of " + program + " at " + Versions().reference(program)
	if m := flagNotDefined.FindStringSubmatch(err.Error()); m != nil {
		return WithHint(fmt.Errorf("--%s-arg=%s: %s has no such flag in this version", program, m[1], program), see)
	}
	return WithHint(fmt.Errorf("--%s-arg: %w", program, err), see)
}

// gateFlags act on the whole process, because the three Kubernetes programs
// share one registry of feature gates (component-base/compatibility/registry.go).
var gateFlags = []string{"feature-gates", "emulated-version", "min-compatibility-version", "emulation-forward-compatible", "runtime-config-emulation-forward-compatible"}

// checkGates refuses gates that the three programs would have differently when
// they were three processes: here the last one would win silently.
func checkGates(args map[string][]arg) error {
	seen := map[string]arg{}
	owner := map[string]string{}
	var errs []error
	for _, program := range []string{nameAPIServer, nameControllerManager, nameScheduler} {
		for _, a := range gatesOf(args[program]) {
			first, ok := seen[a.key]
			if ok && first.value != a.value {
				errs = append(errs, WithHint(
					fmt.Errorf("%s: %s=%s, but %s: %s=%s", owner[a.key], first.key, first.value, program, a.key, a.value),
					"feature gates hold for the whole process; give each once"))
			}
			seen[a.key], owner[a.key] = a, program
		}
	}
	return errors.Join(errs...)
}

// gatesOf splits the gate flags of one program into single settings.
func gatesOf(args []arg) []arg {
	var gates []arg
	for _, a := range args {
		if !slices.Contains(gateFlags, a.key) {
			continue
		}
		for part := range strings.SplitSeq(a.value, ",") {
			key, value, found := strings.Cut(strings.TrimPrefix(part, "kube:"), "=")
			if !found {
				key, value = a.key, part
			}
			gates = append(gates, arg{key, value})
		}
	}
	return gates
}

// withoutGates drops the gate flags: a second parse would add them up, and the
// registry ignores what comes after Set.
func withoutGates(args []arg) []arg {
	return slices.DeleteFunc(slices.Clone(args), func(a arg) bool { return slices.Contains(gateFlags, a.key) })
}

// programs are the three Kubernetes programs' options, parsed and valid.
type programs struct {
	api      *apioptions.ServerRunOptions
	kcm      *kcmoptions.KubeControllerManagerOptions
	sched    *schedoptions.Options
	settings schedulerSettings
}

// parsePrograms parses all three command lines, sets the feature gates once,
// and validates. It changes nothing but the process-wide gates.
func parsePrograms(args map[string][]arg) (*programs, error) {
	if err := checkGates(args); err != nil {
		return nil, err
	}
	p := &programs{}
	var errs [3]error
	p.api, errs[0] = parseAPIServer(args[nameAPIServer], pki.ControllerNames{})
	p.kcm, errs[1] = parseControllerManager(args[nameControllerManager])
	p.sched, errs[2] = parseScheduler(args[nameScheduler])
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	registry := p.api.GenericServerRunOptions.ComponentGlobalsRegistry
	if err := registry.Set(); err != nil {
		return nil, fmt.Errorf("feature gates: %w", err)
	}
	registry.AddMetrics()
	if gates, ok := registry.FeatureGateFor(basecompatibility.DefaultKubeComponent).(interface{ AddMetrics() }); ok {
		gates.AddMetrics()
	}
	return p, p.validate()
}

func (p *programs) validate() error {
	var errs []error
	add := func(program string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", program, err))
		}
	}
	completed, err := p.api.Complete(context.Background())
	add(nameAPIServer, err)
	if err == nil {
		add(nameAPIServer, errors.Join(completed.Validate()...))
	}
	add(nameControllerManager, p.kcm.Validate(kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases()))
	p.settings, err = readSchedulerSettings(p.sched)
	if err != nil {
		errs = append(errs, err)
	} else if p.sched.ComponentConfig != nil {
		add(nameScheduler, errors.Join(p.sched.Validate()...))
	}
	return errors.Join(errs...)
}
