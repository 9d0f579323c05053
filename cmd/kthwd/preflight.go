package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/commands"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/pki"
	"kthwd/appliance/preflight"
	"kthwd/appliance/program"
	"kthwd/appliance/text"
	"kthwd/appliance/tune"
	"kthwd/cmd/kthwd/cli"
	"kthwd/lb"
)

func (a *app) preflightVerb(l *config.Loader) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "preflight --role=ROLE [flags]",
		Short: "Check ports, addresses, disk, memory, clock and limits",
		Long: "Check this machine for a start with these flags, and print a remedy for each problem. After\n" +
			"\"warn\" kthwd serves, but not as it should; after \"fail\" it will not serve, and the exit\n" +
			"code is 1; it is 2 if a program would refuse its flags. The latency of the disk is measured in the data directory, for one second at\n" +
			"most.",
		Example: "  kthwd preflight --role=controller --config=/etc/kthwd/controller.yaml",
		Args:    cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := cli.CheckOutput(output)
			if err != nil {
				return err
			}
			return a.preflight(cmd.Context(), l, asJSON)
		},
	}
	l.AddFlags(cmd.Flags())
	cli.OutputFlag(cmd, &output)
	return cmd
}

func (a *app) preflight(ctx context.Context, l *config.Loader, asJSON bool) error {
	if err := cli.Read(l); err != nil {
		return err
	}
	var all []preflight.Result
	if l.Config.Is(config.RoleController) {
		all = append(all, a.controllerChecks(ctx, l)...)
	}
	if l.Config.Is(config.RoleLB) {
		all = append(all, balancerChecks(ctx, l)...)
	}
	all = append(all, metricsClients(l)...)
	all = append(all, preflight.Memory(tune.UsableMemory()))
	if l.Config.Is(config.RoleController) {
		all = append(all, preflight.Limits(program.Quota(l.Config.Controller))...)
	} else {
		all = append(all, preflight.Files())
	}
	if r, ok := preflight.Systemd(); ok {
		all = append(all, r)
	}
	if err := a.showPreflight(all, asJSON); err != nil {
		return err
	}
	if l.Config.Is(config.RoleController) {
		if err := commands.CheckConfiguration(l.Config.Controller); err != nil {
			return err
		}
	}
	if preflight.Failed(all) {
		return cli.ErrDegraded
	}
	return nil
}

// showPreflight writes the table; to the journal it writes only the problems, with their levels.
func (a *app) showPreflight(all []preflight.Result, asJSON bool) error {
	switch {
	case asJSON:
		return cli.WriteJSON(a.Out, all)
	case cli.IsJournal(a.Err):
		for _, r := range all {
			level := map[preflight.Verdict]slog.Level{preflight.Warn: slog.LevelWarn, preflight.Fail: slog.LevelError}[r.Verdict]
			if r.Verdict != preflight.OK {
				fmt.Fprintf(a.Err, "%spreflight: %s: %s; %s\n", a.Priority(level), r.What, r.Found, r.Do)
			}
		}
		return nil
	}
	for i := range all {
		all[i].Do = a.AsTyped(all[i].Do)
	}
	p := cli.Painter(a.Out)
	colour := map[preflight.Verdict]string{preflight.OK: "32", preflight.Warn: "33", preflight.Fail: "31;1"}
	return preflight.WriteTable(a.Out, all, func(v preflight.Verdict) string { return p(colour[v], string(v)) })
}

func (a *app) controllerChecks(ctx context.Context, l *config.Loader) []preflight.Result {
	c := l.Config.Controller
	all := []preflight.Result{a.controllerPorts(ctx, l)}
	all = append(all, preflight.Address("advertise-address", c.AdvertiseAddress))
	if c.BindAddress != c.AdvertiseAddress {
		if r := preflight.Address("bind-address", c.BindAddress); r.Verdict != preflight.OK {
			all = append(all, r)
		}
	}
	all = append(all, controllerFiles(c), directories(c))
	return append(all, preflight.Directory(c.DataDir), preflight.Sync(c.Layout().Etcd()), preflight.Clock(time.Now(), c.Layout().CA()))
}

// controllerFiles checks the files of the data directory as a start does.
func controllerFiles(c config.Controller) preflight.Result {
	r := preflight.Result{What: "files", Verdict: preflight.OK}
	report, err := pki.Check(c.Layout(), c.PKISpec())
	if err != nil {
		return failed(r, advice.Lines(err))
	}
	r.Found = fmt.Sprintf("%d are there, %d would be made", len(report.Kept), len(report.Missing))
	return r
}

// directories checks the owner and the file system of the data directories as a start does.
func directories(c config.Controller) preflight.Result {
	r := preflight.Result{What: "file system", Verdict: preflight.OK}
	err := datadir.Usable(c.Layout())
	var foreign *datadir.Foreign
	switch {
	case errors.As(err, &foreign): // a start as that user may be right
		r.Verdict, r.Found, r.Do = preflight.Warn, "not checked: "+foreign.Error(), foreign.Hint()
		return r
	case err != nil:
		return failed(r, advice.Lines(err))
	}
	r.Found = "has what kthwd needs"
	return r
}

// controllerPorts checks that the ports are free, or in use by the kthwd that runs on this directory.
func (a *app) controllerPorts(ctx context.Context, l *config.Loader) preflight.Result {
	r := preflight.Result{What: "ports", Verdict: preflight.OK, Found: "free"}
	errs := advice.Lines(preflight.Ports(l.Config.Controller, l.Config.MetricsAddress))
	if len(errs) == 0 {
		return r
	}
	if c, err := a.Target(l); err == nil {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if report, err := c.Status(ctx); err == nil {
			r.Found = fmt.Sprintf("in use by kthwd itself, process %d", report.PID)
			return r
		}
	}
	return failed(r, errs)
}

// metricsClients checks the web configuration of the metrics address as a start does, and whom it
// lets in.
func metricsClients(l *config.Loader) []preflight.Result {
	r := preflight.Result{What: "metrics clients", Verdict: preflight.OK, Found: l.Config.MetricsWeb}
	if l.Config.MetricsAddress == "" || l.Config.MetricsWeb == "" {
		return nil
	}
	if err := checkWeb(l); err != nil {
		return []preflight.Result{failed(r, advice.Lines(err))}
	}
	for _, f := range webClients(l.Config).Findings() {
		r.Verdict, r.Found, r.Do = preflight.Warn, f.Text, f.Do
	}
	return []preflight.Result{r}
}

func failed(r preflight.Result, errs []error) preflight.Result {
	var found []string
	for _, err := range errs {
		found = append(found, text.Joined(err.Error()))
	}
	r.Verdict, r.Found, r.Do = preflight.Fail, strings.Join(found, "; "), cli.HintFor(errs[0])
	return r
}

// balancerChecks only warns of a port in use: it may belong to the socket unit, or to
// the kthwd that this one will take over from.
func balancerChecks(ctx context.Context, l *config.Loader) []preflight.Result {
	c := l.Config.LB
	listens := preflight.Result{What: "listen", Verdict: preflight.OK, Found: strings.Join(c.ListenAddresses(), ", ") + " free"}
	var errs []error
	for _, address := range c.ListenAddresses() {
		ln, err := new(net.ListenConfig).Listen(ctx, lb.Network(address), address)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ln.Close()
	}
	if len(errs) > 0 {
		listens = failed(listens, errs)
		if errors.Is(errs[0], syscall.EADDRINUSE) {
			listens.Verdict, listens.Do = preflight.Warn, "expected if it is kthwd-lb.socket or kthwd; otherwise find it with ss -ltnp"
		}
	}
	return []preflight.Result{listens, backends(ctx, c.Backends)}
}

func backends(ctx context.Context, all []string) preflight.Result {
	r := preflight.Result{What: "backends", Verdict: preflight.OK}
	dialer := net.Dialer{Timeout: time.Second}
	var silent []string
	for _, b := range all {
		conn, err := dialer.DialContext(ctx, "tcp", b)
		if err != nil {
			silent = append(silent, b)
			continue
		}
		conn.Close()
	}
	r.Found = fmt.Sprintf("%d of %d accept connections", len(all)-len(silent), len(all))
	if len(silent) > 0 {
		r.Verdict, r.Do = preflight.Warn, "check "+strings.Join(silent, ", ")
	}
	return r
}
