package cmdline

import (
	"fmt"
	"io"
	"regexp"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"

	"kthwd/appliance/advice"
	"kthwd/appliance/program"
)

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
		return UnknownFlag(name, err)
	}
	return nil
}

var flagNotDefined = regexp.MustCompile(`(?:unknown flag: --|flag provided but not defined: -)(\S+)`)

// UnknownFlag turns a parser's error into a sentence with the argument that the
// user wrote.
func UnknownFlag(program string, err error) error {
	see := "see the flags of " + program + " at " + reference(program)
	if m := flagNotDefined.FindStringSubmatch(err.Error()); m != nil {
		return advice.With(fmt.Errorf("--%s-arg=%s: %s has no such flag in this version", program, m[1], program), see)
	}
	return advice.With(fmt.Errorf("--%s-arg: %w", program, err), see)
}

// reference is where upstream documents a program's flags.
func reference(name string) string {
	if name == program.Etcd {
		return "https://etcd.io/docs/v3.6/op-guide/configuration/"
	}
	return "https://kubernetes.io/docs/reference/command-line-tools-reference/" + name + "/"
}
