package main

import (
	"fmt"

	"github.com/spf13/cobra"

	linked "kthwd/appliance/version"
)

// versions is the output of kthwd version.
type versions struct {
	Kthwd      string `json:"kthwd"`
	Commit     string `json:"commit"`
	Kubernetes string `json:"kubernetes"`
	Etcd       string `json:"etcd"`
	Go         string `json:"go"`
}

func (a *app) versionVerb() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version [flags]",
		Short: "Print the versions of kthwd, Kubernetes, etcd and Go",
		Args:  noVerb,
		RunE: func(*cobra.Command, []string) error {
			asJSON, err := checkOutput(output)
			if err != nil {
				return err
			}
			return a.version(asJSON)
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func (a *app) version(asJSON bool) error {
	in := linked.Linked()
	v := versions{version, commit, in.Kubernetes, in.Etcd, in.Go}
	if !in.Stamped {
		v.Kubernetes = "unknown"
		a.warn("built without versions; make build sets them")
	}
	if asJSON {
		return writeJSON(a.out, v)
	}
	_, err := fmt.Fprintf(a.out, "kthwd       %s (%s)\nkubernetes  %s\netcd        %s\ngo          %s\n", v.Kthwd, v.Commit, v.Kubernetes, v.Etcd, v.Go)
	return err
}
