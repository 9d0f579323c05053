package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"kthwd/appliance/config"
)

// A Loader combines defaults, a file and flags, and reports every problem at once.
func ExampleLoader() {
	dir, err := os.MkdirTemp("", "config-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "kthwd.yaml")
	if err := os.WriteFile(file, []byte("role: lb\nbackend: 10.0.1.73:6443\nbalance: random\n"), 0o600); err != nil {
		panic(err)
	}

	l := config.NewLoader()
	fs := pflag.NewFlagSet("kthwd", pflag.ContinueOnError)
	l.AddFlags(fs)
	if err := fs.Parse([]string{"--config=" + file, "--backend=10.0.1.35:6443"}); err != nil {
		panic(l.FlagError(err))
	}
	for _, step := range []func() error{l.Load, l.Resolve} {
		if err := step(); err != nil {
			panic(err)
		}
	}
	for _, key := range []string{"backend", "balance", "listen"} {
		fmt.Println(key, "is from", filepath.Base(l.Origin(key)))
	}
	fmt.Println(l.Config.LB.Backends)

	var problem *config.Problem
	if errors.As(l.Validate(), &problem) { // the first one; all are joined
		fmt.Println(problem.Key, problem.Text)
	}
	// Output:
	// backend is from flag
	// balance is from kthwd.yaml:3
	// listen is from default
	// [10.0.1.35:6443]
	// balance "random" is none of least-connections, round-robin, source, first
}
