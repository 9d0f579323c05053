package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"kthwd/appliance/text"
)

// Loader reads a configuration: defaults, then the file, then the command line.
//
//	l := config.NewLoader()
//	l.AddFlags(cmd.Flags())          // all, or those named
//	…                                // the command line is parsed
//	err := l.Load()                  // the file, which flags override
//	err = l.Resolve()                // values that depend on this machine
//	err = l.Validate()               // all problems at once
//	run(l.Config)
//
// Each step requires the one before it. Use a Loader once.
type Loader struct {
	// Config is the result. Callers must not change it.
	Config Config

	file    string // --config
	table   []setting
	fs      *pflag.FlagSet
	origins map[string]string
}

// NewLoader returns a Loader that holds the defaults.
func NewLoader() *Loader {
	l := &Loader{Config: Default(), origins: map[string]string{}}
	l.table = l.settings()
	l.fs = pflag.NewFlagSet("kthwd", pflag.ContinueOnError)
	for _, s := range l.table {
		s.bind(l.fs)
	}
	return l
}

// Parse reads a configuration file that is in memory, as Load and its successors would from
// path, and returns all that is wrong with it.
func Parse(path string, data []byte) (*Loader, error) {
	l := NewLoader()
	l.file = path
	if err := l.parseFile(path, data); err != nil {
		return nil, err
	}
	if err := l.Resolve(); err != nil {
		return nil, err
	}
	return l, l.Validate()
}

// AddFlags adds the flags with the given names to a command's flags, or all flags
// when names is empty. Commands may share a Loader, because only one of them runs.
func (l *Loader) AddFlags(fs *pflag.FlagSet, names ...string) {
	l.fs.VisitAll(func(f *pflag.Flag) {
		if len(names) == 0 || slices.Contains(names, f.Name) {
			fs.AddFlag(f)
		}
	})
}

// The origins that Origin returns, other than FILE:LINE.
const (
	OriginDefault = "default"
	OriginFlag    = "flag"
)

// Origin returns where the value of a setting came from: "default", "flag",
// "FILE:LINE", or "default, …" with the source of a derived value.
func (l *Loader) Origin(name string) string {
	if o, ok := l.origins[name]; ok {
		return o
	}
	if f := l.fs.Lookup(name); f != nil && f.Changed {
		return OriginFlag
	}
	return OriginDefault
}

// IsSet reports whether the file or a flag sets the setting.
func (l *Loader) IsSet(name string) bool {
	o := l.Origin(name)
	return o != OriginDefault && !strings.HasPrefix(o, OriginDefault+", ")
}

// inFile reports whether the value of the setting is the file's.
func (l *Loader) inFile(name string) bool { return l.IsSet(name) && l.Origin(name) != OriginFlag }

// FlagError turns an error of the command line's parser into a *Problem that
// suggests the flag closest to a misspelled one.
func (l *Loader) FlagError(err error) error {
	var unknown *pflag.NotExistError
	var value *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "":
		return l.unknownFlag(unknown.GetSpecifiedName())
	case errors.As(err, &value):
		f := value.GetFlag()
		return &Problem{Key: f.Name, Origin: OriginFlag, Text: wrongType(f, value.GetValue())}
	default:
		return &Problem{Text: text.Line(err.Error())}
	}
}

func (l *Loader) unknownFlag(name string) *Problem {
	if f := l.fs.Lookup(name); f != nil {
		return &Problem{Text: "flag --" + name + " does not apply to this verb"}
	}
	return &Problem{Text: "unknown flag --" + name, Hint: didYouMean("--", l.nearest(name))}
}

func didYouMean(prefix, name string) string {
	if name == "" {
		return ""
	}
	return "did you mean " + prefix + name + "?"
}

// wrongType returns why the text s is not a value of the flag f.
func wrongType(f *pflag.Flag, s string) string {
	switch {
	case f.Value.Type() == "int":
		return fmt.Sprintf("%q is not a whole number", s)
	case f.Value.Type() == "bool":
		return fmt.Sprintf("%q is neither true nor false", s)
	case f.Value.Type() == "duration":
		return fmt.Sprintf("%q is not a duration, such as 30s", s)
	case isList(f):
		return fmt.Sprintf("%q is not a comma-separated list", s)
	default:
		return fmt.Sprintf("%q is not a %s", s, f.Value.Type())
	}
}
