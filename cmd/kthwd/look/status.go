package look

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/status"
	"kthwd/cmd/kthwd/cli"
)

// statusFlags are the flags of kthwd status that are not settings.
type statusFlags struct {
	output string
	watch  bool
	all    bool   // all controllers of the cluster
	server string // metrics address of another machine
	tls    status.TLSFiles
	user   string
	secret string // file with its password
}

// passwordVariable has the password if no file is given.
const passwordVariable = "KTHWD_PASSWORD"

func (a *app) statusVerb(l *config.Loader) *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "Show components, problems and remedies of the running kthwd",
		Long: "Show the components of the running kthwd and the quorum of etcd, or the listeners and\n" +
			"backends of a load balancer, then each problem and its remedy. The exit code is 0 when\n" +
			"kthwd is healthy, 1 when it is degraded, 2 when it is down or does not answer. The command\n" +
			"queries a unix socket (a controller's is in its data directory) or, without permission for\n" +
			"that, the metrics address; with --server, the metrics address of another machine.",
		Args: cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(statusOutputs, f.output) {
				return cli.Usagef("--output %q is no format: want json, yaml or wide", f.output)
			}
			return a.status(cmd.Context(), l, f)
		},
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir", "metrics-address", "status-socket")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "`FORMAT` Format of the output: json, yaml, or wide, a table with members, leases, certificates and the last changes; empty means a table.")
	cmd.Flags().BoolVarP(&f.watch, "watch", "w", false, "Show the status again after each change, until Ctrl-C.")
	cmd.Flags().BoolVar(&f.all, "cluster", false, "Show one line for each controller of the cluster, which this one asks every few seconds. The exit code is that of the worst.")
	cmd.Flags().StringVar(&f.server, "server", "", "`ADDRESS:PORT` Metrics address of kthwd on another machine; https://ADDRESS:PORT if its web configuration has TLS.")
	cmd.Flags().StringVar(&f.tls.CA, "certificate-authority", "", "`FILE` CA that verifies the certificate of --server; empty means the system's CAs.")
	cmd.Flags().StringVar(&f.tls.Cert, "client-certificate", "", "`FILE` Client certificate for --server.")
	cmd.Flags().StringVar(&f.tls.Key, "client-key", "", "`FILE` Key of --client-certificate.")
	cmd.Flags().StringVar(&f.user, "user", "", "`NAME` User name for --server, if its web configuration has users.")
	cmd.Flags().StringVar(&f.secret, "password-file", "", "`FILE` File whose first line is the password of --user; without this flag the password is in KTHWD_PASSWORD in the environment.")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(statusOutputs[1:], cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

var statusOutputs = []string{"", "json", "yaml", "wide"}

func (a *app) status(ctx context.Context, l *config.Loader, f statusFlags) error {
	ask := a.Target
	if f.server != "" {
		ask = f.remote
	} else if f.user != "" || f.secret != "" || f.tls != (status.TLSFiles{}) {
		return advice.With(cli.Usagef("a certificate or a user without --server"), "kthwd on this machine answers on a socket; --server=ADDRESS:PORT queries a metrics address")
	}
	if f.all && f.watch {
		return cli.Usagef("--cluster shows the state once: it goes without --watch")
	}
	c, err := ask(l)
	if err != nil {
		return err
	}
	if f.all {
		return a.showCluster(ctx, c, f.output)
	}
	if f.watch {
		return a.watchStatus(ctx, c, f.output)
	}
	return a.showStatus(ctx, c, f.output)
}

// remote makes a client of the kthwd at the metrics address in --server.
func (f statusFlags) remote(*config.Loader) (cli.Target, error) {
	c := cli.Target{Client: status.Client{Addr: f.server, TLS: f.tls, Login: status.Login{User: f.user, Password: os.Getenv(passwordVariable)}}}
	switch {
	case f.user == "" && f.secret == "":
		c.Login = status.Login{}
	case f.user == "" || strings.Contains(f.user, ":"):
		return c, cli.Usagef("--user %q is no user: want a name without a colon", f.user)
	case f.secret != "":
		password, err := status.ReadPassword(f.secret)
		if err != nil {
			return c, cli.Down(fmt.Errorf("--password-file: %w", err))
		}
		c.Login.Password = password
	case c.Login.Password == "":
		return c, advice.With(cli.Usagef("--user without a password"), "give --password-file, or the password in "+passwordVariable)
	}
	return c, nil
}

func (a *app) showStatus(ctx context.Context, c cli.Target, output string) error {
	r, err := askStatus(ctx, c)
	if err != nil {
		return err
	}
	if err := a.writeStatus(r, output); err != nil {
		return err
	}
	return exitOf(r.Health)
}

// showCluster shows the state of all controllers. One that does not answer is down.
func (a *app) showCluster(ctx context.Context, c cli.Target, output string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	all, err := c.Cluster(ctx)
	if err != nil {
		return cli.Down(c.Explain(err))
	}
	switch output {
	case "json":
		err = cli.WriteJSON(a.Out, all)
	case "yaml":
		err = cli.WriteYAML(a.Out, all)
	default:
		err = status.WriteCluster(a.Out, all.Spelled(a.AsTyped), time.Now(), cli.Colours(a.Out))
	}
	if err != nil {
		return err
	}
	return exitOf(all.Health)
}

func askStatus(ctx context.Context, c cli.Target) (status.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := c.Status(ctx)
	if err != nil {
		return r, cli.Down(c.Explain(err))
	}
	return r, nil
}

func (a *app) writeStatus(r status.Report, output string) error {
	switch output {
	case "json":
		return cli.WriteJSON(a.Out, r)
	case "yaml":
		return cli.WriteYAML(a.Out, r)
	}
	write := status.WriteTable
	if output == "wide" {
		write = status.WriteWide
	}
	return write(a.Out, r.Spelled(a.AsTyped), time.Now(), cli.Colours(a.Out), cli.TerminalWidth(a.Out, 0))
}

// watchStatus shows the status again when anything but the time has changed.
func (a *app) watchStatus(ctx context.Context, c cli.Target, output string) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := ""
	for {
		r, err := askStatus(ctx, c)
		key := r.Fingerprint()
		if err != nil {
			key = err.Error()
		}
		if ctx.Err() == nil && key != last {
			if last != "" && output != "json" && output != "yaml" {
				fmt.Fprintf(a.Out, "\n%s\n", time.Now().Format(time.TimeOnly))
			}
			last = key
			if err != nil {
				a.Report(err)
			} else if err := a.writeStatus(r, output); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// exitOf returns the error whose exit code a health has.
func exitOf(h status.Health) error {
	switch h {
	case status.Degraded:
		return cli.ErrDegraded
	case status.Down:
		return cli.ErrDown
	}
	return nil
}
