package upgrade

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/apiserver"
	"kthwd/appliance/backup/keep"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/etcdspace"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/status"
	"kthwd/appliance/support"
	"kthwd/appliance/text"
	"kthwd/appliance/upgradecheck"
	"kthwd/appliance/upgradecheck/binary"
	"kthwd/cmd/kthwd/cli"
)

// upgradeCheckTimeout bounds a look at all keys of etcd; what is not known by then is unknown.
const upgradeCheckTimeout = 5 * time.Minute

// upgradeCheckFlags are the flags of kthwd upgrade check that are not settings.
type upgradeCheckFlags struct {
	binary, output string
	strict         bool
}

func (a *app) upgradeCheckVerb(l *config.Loader) *cobra.Command {
	f := upgradeCheckFlags{}
	cmd := &cobra.Command{
		Use:   "check [flags]",
		Short: "Check whether this controller may move to another kthwd now",
		Long: "Check whether this controller may move to the kthwd in --binary now: versions, the other\n" +
			"controllers, quorum and etcd, flags and file, APIs that clients use, objects that the new one\n" +
			"could not read, certificates, disk and backup. Nothing is changed. Run it while the old kthwd\n" +
			"runs; what cannot be judged is unknown, with the reason.\n\n" +
			"The exit code is 0 if the upgrade may begin, also with a warn or an unknown, 1 if a check\n" +
			"says no, and 2 after wrong usage, or where nothing could be checked. With --strict, warn and\n" +
			"unknown count as no.",
		Example: "  kthwd upgrade check --binary=./kthwd-new\n  kthwd upgrade check --strict -o json",
		Args:    cli.NoVerb,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.upgradeCheck(cmd.Context(), l, f) },
	}
	l.AddFlags(cmd.Flags())
	cmd.Flags().StringVar(&f.binary, "binary", "", "`FILE` The new kthwd. It is executed, without an environment; as root only if nobody else can write it. Empty means the kthwd that makes this check.")
	cmd.Flags().BoolVar(&f.strict, "strict", false, "Count warn and unknown as no.")
	cli.OutputFlag(cmd, &f.output)
	return cmd
}

// upgradeFactsVerb is for the kthwd that checks an upgrade to this one.
func (a *app) upgradeFactsVerb() *cobra.Command {
	return &cobra.Command{
		Use:    strings.Join(binary.FactsVerb[1:], " "),
		Short:  "Print the objects that this kthwd can read from etcd",
		Hidden: true,
		Args:   cli.NoVerb,
		RunE: func(*cobra.Command, []string) error {
			return cli.WriteJSON(a.Out, binary.Facts{Kinds: apiserver.Decodable()})
		},
	}
}

// upgradeChecked is the output as JSON.
type upgradeChecked struct {
	Binary  binary.Binary         `json:"binary"`
	Go      bool                  `json:"go"` // the upgrade may begin
	Results []upgradecheck.Result `json:"results"`
}

func (a *app) upgradeCheck(ctx context.Context, l *config.Loader, f upgradeCheckFlags) error {
	asJSON, err := cli.CheckOutput(f.output)
	if err != nil {
		return err
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	ctx, cancel := context.WithTimeout(ctx, upgradeCheckTimeout)
	defer cancel()
	in, err := a.upgradeInput(ctx, l, f)
	if err != nil {
		return err
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return errors.New("interrupted: nothing has changed")
	}
	results := upgradecheck.Judge(in)
	blocking := upgradecheck.Blocking(results, f.strict)
	if asJSON {
		err = cli.WriteJSON(a.Out, upgradeChecked{Binary: in.Binary, Go: len(blocking) == 0, Results: results})
	} else {
		err = a.writeUpgradeCheck(results)
	}
	if err != nil || len(blocking) == 0 {
		return err
	}
	var reasons []string
	for _, r := range blocking {
		reasons = append(reasons, r.Check+": "+r.Reason)
	}
	return advice.With(fmt.Errorf("the upgrade must wait: %s", strings.Join(reasons, "; ")), blocking[0].Do)
}

func (a *app) writeUpgradeCheck(results []upgradecheck.Result) error {
	for i := range results {
		results[i].Do = a.AsTyped(results[i].Do)
	}
	p := cli.Painter(a.Out)
	colour := map[upgradecheck.Verdict]string{upgradecheck.OK: "32", upgradecheck.Warn: "33", upgradecheck.No: "31;1", upgradecheck.Unknown: "33"}
	return upgradecheck.WriteTable(a.Out, results, func(v upgradecheck.Verdict) string { return p(colour[v], string(v)) })
}

// upgradeInput collects what there is to judge. An error means that there is nothing.
func (a *app) upgradeInput(ctx context.Context, l *config.Loader, f upgradeCheckFlags) (in upgradecheck.Input, err error) {
	c, err := a.Target(l)
	if err != nil {
		return in, err
	}
	if c.Dir == "" {
		return in, advice.With(cli.Usagef("a load balancer has no data that an upgrade could touch"), "run this on a controller")
	}
	in.Now = time.Now()
	if in.Report, in.Down = askReport(ctx, c); in.Down != nil {
		if _, missing := os.Stat(c.Dir); errors.Is(in.Down, fs.ErrPermission) || missing != nil {
			return in, cli.Down(in.Down)
		}
	}
	in.Binary, in.BinaryErr = binary.Inspect(ctx, f.binary)
	if in.BinaryErr == nil {
		in.BinaryErr = ctx.Err()
	}
	in.Record, in.RecordErr = etcdfiles.ReadRecord(c.Layout())
	running := support.Running{File: l.File(), Settings: l.Values()} // as a start of now
	if in.Report != nil {
		if running, err = cli.AskRunning(ctx, c); err != nil {
			return in, cli.Down(c.Explain(err))
		}
	}
	controller := controllerOf(l.Config.Controller, c, running)
	if in.Report != nil {
		a.inputOfRunning(ctx, c, controller.Layout(), running, &in)
	}
	inputOfFiles(controller, &in)
	if in.BinaryErr == nil {
		in.Configuration, in.ConfigurationErr = in.Binary.CheckConfiguration(ctx, running.File, running.Settings, directoryOf(running.PID))
	}
	return in, nil
}

// askReport asks the running kthwd for its report.
func askReport(ctx context.Context, c cli.Target) (*status.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c.Anywhere, c.Addr = false, "" // no other kthwd than the one with these data
	r, err := c.Status(ctx)
	if err != nil {
		return nil, c.Explain(err)
	}
	return &r, nil
}

// controllerOf are the settings of the controller that is checked, as far as they matter for its
// files: those of the running one, which may be more than this verb was given.
func controllerOf(c config.Controller, t cli.Target, running support.Running) config.Controller {
	c.DataDir = t.Dir
	for _, s := range running.Settings {
		values, err := binary.Words(s.Text)
		if err != nil || len(values) == 0 {
			continue
		}
		switch s.Key {
		case "etcd-data-dir":
			c.EtcdDataDir = values[0]
			if values[0] != "" && !filepath.IsAbs(values[0]) {
				c.EtcdDataDir = filepath.Join(directoryOf(running.PID), values[0])
			}
		case "etcd-arg":
			c.EtcdArgs = values
		case "copy-before-upgrade":
			c.UpgradeCopy = values[0] != "false"
		}
	}
	return c
}

// inputOfRunning adds what only a running kthwd, and its cluster, can tell.
func (a *app) inputOfRunning(ctx context.Context, c cli.Target, layout pki.Layout, running support.Running, in *upgradecheck.Input) {
	if all, err := c.Cluster(ctx); err == nil {
		in.Cluster = &all
	}
	in.DriftErr = c.Do(ctx, http.MethodGet, "/config/diff", nil, &in.Drift)
	args := program.ParseUser(running.Programs[program.APIServer])
	in.Requests, in.RequestsErr = upgradecheck.ReadRequests(program.Value(args, "audit-log-path"))
	if etcd, err := etcdspace.Open(ctx, layout); err != nil {
		in.EtcdErr, in.StoredErr = err, err
	} else {
		defer etcd.Close()
		if s, err := etcd.Status(ctx); err != nil {
			in.EtcdErr = err
		} else {
			in.Etcd = &s
		}
		in.Stored, in.StoredErr = upgradecheck.ReadStored(ctx, etcd, cmp.Or(program.Value(args, "etcd-prefix"), "/registry"))
	}
	api, err := adminAPI(c, layout, args)
	if err != nil {
		in.CRDsErr, in.AskedErr = err, err
		return
	}
	defer api.Close()
	in.CRDs, in.CRDsErr = api.CRDs(ctx)
	in.Asked, in.AskedErr = api.Asked(ctx)
}

// adminAPI asks the API server that has the flags args as the admin of the data directory.
func adminAPI(c cli.Target, layout pki.Layout, args []program.Arg) (*upgradecheck.API, error) {
	kubeconfig := layout.Kubeconfig(pki.NameAdmin)
	if err := c.MayUse(kubeconfig); err != nil {
		return nil, err
	}
	return upgradecheck.NewAPI(kubeconfig, localServer(args))
}

// localServer is the URL of the API server that has the flags args.
func localServer(args []program.Arg) string {
	c := config.Default().Controller
	c.BindAddress, c.AdvertiseAddress = program.Value(args, "bind-address"), program.Value(args, "advertise-address")
	if port, err := strconv.Atoi(program.Value(args, "secure-port")); err == nil {
		c.SecurePort = port
	}
	return c.LocalServer()
}

// inputOfFiles adds what the files of the data directory tell.
func inputOfFiles(c config.Controller, in *upgradecheck.Input) {
	layout := c.Layout()
	if in.Report != nil {
		in.Certificates = in.Report.Certificates
	} else {
		in.Certificates = status.CertificatesOf(func() []string { return certificatesIn(layout) })()
	}
	in.CopyOff = !c.UpgradeCopy
	in.CopySize, in.CopyErr = keep.Options{Layout: layout, WAL: program.Value(program.ParseUser(c.EtcdArgs), "wal-dir")}.Room()
}

// certificatesIn are the files with certificates that a data directory has.
func certificatesIn(layout pki.Layout) (there []string) {
	for _, name := range layout.Files() {
		file := filepath.Join(layout.Dir, name)
		if datadir.Exists(file) && (strings.HasSuffix(name, ".kubeconfig") || strings.HasSuffix(name, ".pem") && !strings.HasSuffix(name, "-key.pem")) {
			there = append(there, file)
		}
	}
	return there
}

// directoryOf is the directory from which the relative paths of a process start.
func directoryOf(pid int) string {
	if pid == 0 {
		if dir, err := os.Getwd(); err == nil {
			return dir
		}
		return "/"
	}
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return "/"
	}
	return text.Line(dir)
}
