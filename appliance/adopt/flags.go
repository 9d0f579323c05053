package adopt

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"go.etcd.io/etcd/pkg/v3/flags"

	"kthwd/appliance/flagvalue"
	"kthwd/appliance/program"
)

// equal reports whether a program takes two values of a flag for the same.
func equal(name, key, a, b string) bool {
	if a == b {
		return true
	}
	var values flagvalue.Reader
	x, ok := values.Read(name, key, a)
	y, ok2 := values.Read(name, key, b)
	return ok && ok2 && x.Value == y.Value
}

// parse reads the words of a command line as the program does. A flag that today's program does
// not have takes the next word for its value unless that is a flag.
func parse(name string, words []string) (args []program.Arg, err error) {
	all, err := flagvalue.Of(name)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(words); i++ {
		word := words[i]
		if !utf8.ValidString(word) {
			return nil, fmt.Errorf("%q is not UTF-8", word)
		}
		text := strings.TrimPrefix(strings.TrimPrefix(word, "-"), "-")
		if text == word || text == "" {
			return nil, fmt.Errorf("%q is no flag", word)
		}
		key, value, found := strings.Cut(text, "=")
		key = strings.ReplaceAll(key, "_", "-")
		f, isKnown := all[key]
		next := i+1 < len(words)
		switch {
		case found:
		case isKnown && f.Bare != "":
			value = f.Bare
		case isKnown && !next:
			return nil, fmt.Errorf("--%s has no value", key)
		case isKnown, next && !strings.HasPrefix(words[i+1], "-"):
			i++
			value = words[i]
		default:
			value = "true"
		}
		args = append(args, program.Arg{Key: key, Value: value})
	}
	return args, nil
}

// fromEnvironment adds the flags that etcd reads from its environment, where no argument sets them.
func fromEnvironment(args []program.Arg, env []string) ([]program.Arg, error) {
	all, err := flagvalue.Of(program.Etcd)
	if err != nil {
		return nil, err
	}
	for key := range all {
		name := flags.FlagToEnv("ETCD", key)
		for _, e := range slices.Backward(env) {
			if value, ok := strings.CutPrefix(e, name+"="); ok && value != "" && !has(args, key) {
				args = append(args, program.Arg{Key: key, Value: value})
			}
		}
	}
	return args, nil
}

func has(args []program.Arg, key string) bool {
	return slices.ContainsFunc(args, func(a program.Arg) bool { return a.Key == key })
}
