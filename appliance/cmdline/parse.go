// Package cmdline reads the command lines of the embedded programs as today's
// programs do.
//
// Translate turns the flags and values of older guides into today's; it comes
// first, because Parse, like the programs, refuses an old flag. CheckGates comes
// before the feature gates are set: the three Kubernetes programs share one set of
// gates, and the last of three different values would win silently. WithoutGates
// drops the gate flags from a command line that is parsed a second time.
//
// SchedulerConfig, EncryptionWarning and CheckPolicies do the same for the files
// that a flag can name. They never change a user's file: a translated
// kube-scheduler.yaml is written into the run directory.
//
// The package sets no feature gate and starts nothing. It does not translate old
// flags that grant access; they remain errors.
package cmdline

import (
	"fmt"
	"io"
	"regexp"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/program"
)

// DiscardLogger is for upstream's parsers that require a logger.
var DiscardLogger = logr.Discard()

// Parse parses a command line with a program's own flag sets.
func Parse(name string, sets cliflag.NamedFlagSets, args []program.Arg) error {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	fs.Usage = func() {}
	for _, set := range sets.Order {
		fs.AddFlagSet(sets.FlagSets[set])
	}
	if err := fs.Parse(program.Render(args)); err != nil {
		var names []string
		fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		return UnknownFlag(name, names, err)
	}
	return nil
}

var flagNotDefined = regexp.MustCompile(`(?:unknown flag: --|flag provided but not defined: -)(\S+)`)

// UnknownFlag turns a parser's error into a sentence with the user's argument. names are
// the flags that the program has.
func UnknownFlag(program string, names []string, err error) error {
	see := "see the flags of " + program + " at " + reference(program)
	if m := flagNotDefined.FindStringSubmatch(err.Error()); m != nil {
		if instead := goneFlags[program][m[1]]; instead != "" {
			return advice.With(fmt.Errorf("--%s-arg=%s: %s no longer has this flag", program, m[1], program), instead)
		}
		if near := config.Nearest(m[1], names); near != "" {
			see = fmt.Sprintf("did you mean --%s-arg=%s? %s", program, near, see)
		}
		return advice.With(fmt.Errorf("--%s-arg=%s: %s has no such flag in this version", program, m[1], program), see)
	}
	return advice.With(fmt.Errorf("--%s-arg: %w", program, err), see)
}

// goneFlags are flags that the program no longer has and that nothing can be translated to,
// each with advice.
var goneFlags = map[string]map[string]string{
	program.Etcd: {
		"discovery":       discoveryGone,
		"discovery-proxy": discoveryGone,
	},
}

const discoveryGone = "etcd's public discovery service of version 2 is gone: name the members with --initial-cluster, or use --etcd-arg=discovery-endpoints and --etcd-arg=discovery-token"

// reference is where upstream documents a program's flags.
func reference(name string) string {
	if name == program.Etcd {
		return "https://etcd.io/docs/v3.7/op-guide/configuration/"
	}
	return "https://kubernetes.io/docs/reference/command-line-tools-reference/" + name + "/"
}
