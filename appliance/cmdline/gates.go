package cmdline

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"kthwd/appliance/advice"
	"kthwd/appliance/program"
)

// gateFlags act on the whole process, because the three Kubernetes programs
// share one registry of feature gates (component-base/compatibility/registry.go).
var gateFlags = []string{"feature-gates", "emulated-version", "min-compatibility-version", "emulation-forward-compatible", "runtime-config-emulation-forward-compatible"}

// CheckGates refuses gates whose values differ between the three programs. Three
// processes would each use their own; in one process the last would win silently.
func CheckGates(args map[string][]program.Arg) error {
	seen := map[string]program.Arg{}
	owner := map[string]string{}
	var errs []error
	for _, name := range []string{program.APIServer, program.ControllerManager, program.Scheduler} {
		for _, a := range gatesOf(args[name]) {
			if instead, gone := goneGates[a.Key]; gone {
				errs = append(errs, refuseGone(name, a, instead))
			}
			first, ok := seen[a.Key]
			if ok && first.Value != a.Value {
				errs = append(errs, advice.With(
					fmt.Errorf("%s: %s=%s, but %s: %s=%s", owner[a.Key], first.Key, first.Value, name, a.Key, a.Value),
					"feature gates hold for the whole process; give each once"))
			}
			seen[a.Key], owner[a.Key] = a, name
		}
	}
	return errors.Join(errs...)
}

// refuseGone refuses a gate that this version lacks; Translate has left out those that ask
// for what it does anyway.
func refuseGone(name string, a program.Arg, instead string) error {
	text, hint := "its feature is always on", "leave it out"
	if instead != "" {
		text, hint = "its feature follows "+instead, "set "+instead+" instead"
	}
	return advice.With(fmt.Errorf("--%s-arg=feature-gates=%s=%s: this version has no such feature gate, %s", name, a.Key, a.Value, text), hint)
}

// gatesOf splits the gate flags of one program into single settings.
func gatesOf(args []program.Arg) []program.Arg {
	var gates []program.Arg
	for _, a := range args {
		if !slices.Contains(gateFlags, a.Key) {
			continue
		}
		for part := range strings.SplitSeq(a.Value, ",") {
			key, value, found := strings.Cut(strings.TrimPrefix(part, "kube:"), "=")
			if !found {
				key, value = a.Key, part
			}
			gates = append(gates, program.Arg{Key: key, Value: value})
		}
	}
	return gates
}

// WithoutGates drops the gate flags: a second parse would add them up, and the
// registry ignores flags parsed after Set.
func WithoutGates(args []program.Arg) []program.Arg {
	return slices.DeleteFunc(slices.Clone(args), func(a program.Arg) bool { return slices.Contains(gateFlags, a.Key) })
}
