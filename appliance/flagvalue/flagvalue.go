// Package flagvalue says what the embedded programs read in the values of their flags.
//
//	all, err := flagvalue.Of(program.APIServer)                             // the flags, from upstream's options
//	r := &flagvalue.Reader{}
//	reading, ok := r.Read(program.APIServer, "event-ttl", "60m")            // 1h0m0s, the default
//
// Two values with one reading are the same value in two spellings. The spelling of a reading is
// this package's; it is for comparisons, not for a command line.
package flagvalue

import (
	"flag"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/pkg/v3/flags"
	"go.etcd.io/etcd/server/v3/embed"
	cliflag "k8s.io/component-base/cli/flag"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	kcmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"kthwd/appliance/program"
)

// Flag is a flag of a program, as upstream's own flag sets have it. It is set once: a list
// would grow with each further value of another reading.
type Flag struct {
	Bare string // its value without one; "" if it needs one
	flag.Value
}

// Of returns a program's flags by name, from upstream's own options.
func Of(name string) (map[string]Flag, error) {
	all := map[string]Flag{}
	if name == program.Etcd {
		fs := flag.NewFlagSet(name, flag.ContinueOnError)
		embed.NewConfig().AddFlags(fs)
		fs.Var(flags.NewSelectiveStringValue(embed.ClusterStateFlagNew, embed.ClusterStateFlagExisting), "initial-cluster-state", "")
		fs.VisitAll(func(f *flag.Flag) {
			k := Flag{Value: f.Value}
			if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
				k.Bare = "true"
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
		set.VisitAll(func(f *pflag.Flag) { all[f.Name] = Flag{Bare: f.NoOptDefVal, Value: f.Value} })
	}
	return all, nil
}

// Reading is what a program reads in a flag.
type Reading struct{ Value, Default string }

// Reader reads values. It keeps the flags of a program until they are used up, because making
// them takes milliseconds. The zero value is ready for use, also by several goroutines.
type Reader struct {
	mu      sync.Mutex
	flags   map[string]map[string]Flag // by program, less those that have been set
	missing map[string]bool            // "program key" of flags that upstream does not have
}

// Read returns what a program reads in the values of a flag that is given once for each of them;
// without any, its default. It returns false where upstream has no such flag, refuses a value, or
// would keep it in a place that the running programs share.
func (r *Reader) Read(name, key string, values ...string) (Reading, bool) {
	if key == keyGates {
		return readGates(values)
	}
	f, ok := r.take(name, key)
	if !ok || slices.Contains(shared, key) {
		return Reading{}, false
	}
	reading := Reading{Default: spelled(name, key, f)}
	for _, v := range values {
		if f.Set(v) != nil {
			return Reading{}, false
		}
	}
	reading.Value = spelled(name, key, f)
	return reading, true
}

// take returns a flag that has not been set.
func (r *Reader) take(name, key string) (Flag, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flags == nil {
		r.flags, r.missing = map[string]map[string]Flag{}, map[string]bool{}
	}
	if r.missing[name+" "+key] {
		return Flag{}, false
	}
	f, ok := r.flags[name][key]
	if !ok {
		all, err := Of(name)
		if err != nil {
			return Flag{}, false
		}
		r.flags[name] = all
		if f, ok = all[key]; !ok {
			r.missing[name+" "+key] = true
			return Flag{}, false
		}
	}
	delete(r.flags[name], key)
	return f, true
}

// listOf returns the elements of a flag whose value is a list.
func listOf(f Flag) ([]string, bool) {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return slices.Clone(list.GetSlice()), true
	}
	text := f.String()
	return strings.Split(text, ","), strings.Contains(text, ",")
}
