package adopt

import (
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/pkg/v3/flags"
	"go.etcd.io/etcd/server/v3/embed"
	cliflag "k8s.io/component-base/cli/flag"
	kcmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"kthwd/appliance/program"
)

// known is a flag of a program, as upstream's own flag sets have it.
type known struct {
	bare string // its value without one; "" if it needs one
	set  func(string) error
	is   func() string
}

// flagsOf returns a program's flags by name, from upstream's own options.
func flagsOf(name string) (map[string]known, error) {
	all := map[string]known{}
	if name == program.Etcd {
		fs := flag.NewFlagSet(name, flag.ContinueOnError)
		embed.NewConfig().AddFlags(fs)
		fs.Var(flags.NewSelectiveStringValue(embed.ClusterStateFlagNew, embed.ClusterStateFlagExisting), "initial-cluster-state", "")
		fs.VisitAll(func(f *flag.Flag) {
			k := known{set: f.Value.Set, is: f.Value.String}
			if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
				k.bare = "true"
			}
			all[f.Name] = k
		})
		return all, nil
	}
	var sets cliflag.NamedFlagSets
	switch name {
	case program.APIServer:
		sets = apioptions.NewServerRunOptions().Flags()
	case program.ControllerManager:
		o, err := kcmoptions.NewKubeControllerManagerOptions()
		if err != nil {
			return nil, err
		}
		sets = o.Flags(kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases())
	case program.Scheduler:
		sets = *schedoptions.NewOptions().Flags
	}
	for _, set := range sets.FlagSets {
		set.VisitAll(func(f *pflag.Flag) {
			all[f.Name] = known{bare: f.NoOptDefVal, set: f.Value.Set, is: f.Value.String}
		})
	}
	return all, nil
}

// equal reports whether a program takes two values of a flag for the same.
func equal(name, key, a, b string) bool {
	if a == b {
		return true
	}
	as := func(value string) (string, bool) {
		all, err := flagsOf(name)
		if err != nil {
			return "", false
		}
		f, ok := all[key]
		return read(f, ok, value)
	}
	x, ok := as(a)
	y, ok2 := as(b)
	return ok && ok2 && x == y
}

func read(f known, ok bool, value string) (string, bool) {
	if !ok || f.set(value) != nil {
		return "", false
	}
	return f.is(), true
}

// parse reads the words of a command line as the program does. A flag that today's program does
// not have takes the next word for its value unless that is a flag.
func parse(name string, words []string) (args []program.Arg, err error) {
	all, err := flagsOf(name)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(words); i++ {
		word := words[i]
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
		case isKnown && f.bare != "":
			value = f.bare
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
	all, err := flagsOf(program.Etcd)
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
