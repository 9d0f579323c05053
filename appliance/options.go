package appliance

import (
	"fmt"
	"io"
	"regexp"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
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
	see := "see the flags of " + program + " at " + reference(program)
	if m := flagNotDefined.FindStringSubmatch(err.Error()); m != nil {
		return WithHint(fmt.Errorf("--%s-arg=%s: %s has no such flag in this version", program, m[1], program), see)
	}
	return WithHint(fmt.Errorf("--%s-arg: %w", program, err), see)
}

// reference is where upstream documents a program's flags.
func reference(program string) string {
	if program == nameEtcd {
		return "https://etcd.io/docs/v3.6/op-guide/configuration/"
	}
	return "https://kubernetes.io/docs/reference/command-line-tools-reference/" + program + "/"
}
