package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/status"
)

func (a *app) statusVerb(l *config.Loader) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "Show the components of the running kthwd; exit code 1 when it is not ready",
		Long: "Show the components of the running kthwd and the quorum of etcd, or the listeners and\n" +
			"backends of a load balancer. The exit code is 1 when it is not ready or not running.\n" +
			"A controller is asked on the unix socket of its data directory, or, without the right\n" +
			"to that, at its metrics address, as a load balancer is.",
		Args: noVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := checkOutput(output)
			if err != nil {
				return err
			}
			return a.status(cmd.Context(), l, asJSON)
		},
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir", "metrics-address")
	outputFlag(cmd, &output)
	return cmd
}

func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "", "`FORMAT` Form of the output: json, or a table for people.")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp)))
}

func (a *app) status(ctx context.Context, l *config.Loader, asJSON bool) error {
	c, err := client(l)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		err = writeJSON(a.out, r)
	} else {
		err = status.WriteTable(a.out, r, time.Now(), colours(a.out))
	}
	if err == nil && !r.Ready {
		err = errNotReady
	}
	return err
}

// client reaches the kthwd that runs on the configured data directory, or the
// load balancer, which has none.
func client(l *config.Loader) (status.Client, error) {
	if err := l.Load(); err != nil {
		return status.Client{}, err
	}
	c := l.Config.Controller
	if l.Config.Is(config.RoleLB) && !l.Config.Is(config.RoleController) { // as its file says
		if l.Config.MetricsAddress == "" {
			return status.Client{}, &hintedError{errors.New("a load balancer without --metrics-address answers nobody"), "give it one, such as " + config.Default().MetricsAddress}
		}
		return status.Client{Addr: l.Config.MetricsAddress}, nil
	}
	if c.DataDir == "" {
		return status.Client{}, usagef("--data-dir is empty")
	}
	return status.Client{
		Socket: c.Layout().ControlSocket(), Addr: l.Config.MetricsAddress,
		// Who names a data directory means the kthwd that runs on it, and no other.
		Anywhere: l.Origin("data-dir") == config.OriginDefault,
	}, nil
}
