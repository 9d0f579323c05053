package look

import (
	"fmt"

	"github.com/spf13/cobra"

	linked "kthwd/appliance/version"
	"kthwd/cmd/kthwd/cli"
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
		Args:  cli.NoVerb,
		RunE: func(*cobra.Command, []string) error {
			asJSON, err := cli.CheckOutput(output)
			if err != nil {
				return err
			}
			return a.version(asJSON)
		},
	}
	cli.OutputFlag(cmd, &output)
	return cmd
}

func (a *app) version(asJSON bool) error {
	in := linked.Linked()
	v := versions{cli.Version, cli.Commit, in.Kubernetes, in.Etcd, in.Go}
	if !in.Stamped {
		v.Kubernetes = "unknown"
		a.Warn("built without versions; make build sets them")
	}
	if asJSON {
		return cli.WriteJSON(a.Out, v)
	}
	_, err := fmt.Fprintf(a.Out, "kthwd       %s (%s)\nkubernetes  %s\netcd        %s\ngo          %s\n", v.Kthwd, v.Commit, v.Kubernetes, v.Etcd, v.Go)
	return err
}
