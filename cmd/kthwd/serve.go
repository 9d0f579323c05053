package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"kthwd/appliance"
	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/early"
	"kthwd/appliance/liveness"
	"kthwd/appliance/logging"
	"kthwd/appliance/program"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/support"
	"kthwd/appliance/text"
	linked "kthwd/appliance/version"
	"kthwd/cmd/kthwd/cli"
	lookverbs "kthwd/cmd/kthwd/look"
)

// serve is kthwd without a verb: it runs the roles until it is asked to stop.
func (a *app) serve(ctx context.Context, l *config.Loader) error {
	early.Over()
	before := statFile(l.Watched())
	if err := cli.Read(l); err != nil {
		return err
	}
	if err := checkWeb(l); err != nil {
		return err
	}
	if l.Config.Is(config.RoleController) && !linked.Linked().Stamped {
		return advice.With(cli.Usagef("this binary lacks the version of its Kubernetes and will not serve"), "build it with make build")
	}
	logs, err := a.NewLogs(l.Config.LogFormat, l.Config.LogLevel)
	if err != nil {
		return err
	}
	log := logs.Logger("kthwd")
	a.introduce(log, l)
	if !l.Config.Debugger {
		if err := cli.CloseMemory(); err != nil {
			log.Warn(cli.OpenMemory, "err", err)
		}
	}
	if a.catchStderr != nil && l.Config.Is(config.RoleController) {
		if err := a.catchStderr(logs); err != nil {
			log.Warn("standard error is not redirected to the log", "err", err)
		}
	}
	if !l.Config.Is(config.RoleLB) {
		ctx, release := a.untilSignal(ctx, log, reactions{
			syscall.SIGHUP: func() { log.Info("signal ignored: the configuration is read at the start only", "signal", "hangup") },
		})
		defer release()
		return a.control(ctx, l, logs, nil)
	}
	b, err := a.newBalancer(l, logs)
	if err != nil {
		return err
	}
	return a.balance(ctx, l, logs, b, before)
}

// checkWeb checks the web configuration of the metrics address before anything starts.
func checkWeb(l *config.Loader) error {
	c := l.Config
	if c.MetricsAddress == "" || c.MetricsWeb == "" {
		return nil
	}
	w, err := status.ReadWeb(c.MetricsWeb)
	if err == nil && !w.TLS && !w.Users && !c.MetricsOpen {
		err = fmt.Errorf("%s: has neither TLS nor users, so it protects nothing", c.MetricsWeb)
	}
	if err == nil {
		return nil
	}
	return l.WithPlaces(&config.Problem{Key: "metrics-web-config", Text: err.Error(),
		Hint: "its format: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md"})
}

// webClients looks at the clients of the metrics address.
func webClients(c config.Config) status.WebClients {
	ca := c.LB.BackendCA
	if c.Is(config.RoleController) {
		ca = c.Controller.Layout().CA()
	}
	return status.WebClients{Address: c.MetricsAddress, Web: c.MetricsWeb, CA: ca}
}

// balance runs the load balancer, and the controller beside it if the process has that
// role too. before is the version of the file that was read.
func (a *app) balance(ctx context.Context, l *config.Loader, logs *logging.Logs, b *balancer, before fileVersion) error {
	asked := make(chan struct{}, 1)
	ctx, release := a.untilSignal(ctx, b.log, reactions{
		syscall.SIGHUP: func() {
			select {
			case asked <- struct{}{}:
			default: // a reload is running, and the next one is queued
			}
		},
		syscall.SIGUSR1: b.toggleDebug,
		syscall.SIGUSR2: b.upgrade,
	})
	defer release()
	ctx, b.end = context.WithCancel(ctx)
	defer b.end()
	file := l.Watched()
	w := &watcher{stat: func() fileVersion { return statFile(file) }, reload: b.reload, refused: b.refused, seen: before}
	go b.whenUp(ctx, func() { w.run(ctx, asked) })
	if b.alone {
		return b.run(ctx)
	}
	return a.control(ctx, l, logs, b.extraRole())
}

// control runs the controller.
func (a *app) control(ctx context.Context, l *config.Loader, logs *logging.Logs, extra *appliance.ExtraRole) error {
	log := logs.Logger("kthwd")
	return appliance.Run(ctx, l.Config.Controller, appliance.Options{
		Logs:      logs,
		Version:   cli.Version,
		File:      l.File(),
		Metrics:   appliance.Metrics{Address: l.Config.MetricsAddress, Web: l.Config.MetricsWeb, Pprof: l.Config.MetricsPprof},
		Started:   a.started,
		LeafLife:  leafLife(),
		AsTyped:   a.AsTyped,
		OnWork:    a.working(),
		OnReady:   func(timeline []supervise.Status) { a.ready(log, l, timeline) },
		OnChange:  a.changed(ctx),
		OnWired:   func(p *liveness.Probe) { a.attend(ctx, log, p) },
		ExtraRole: extra,
		Private: func(args map[string][]program.Arg) map[string]http.HandlerFunc {
			return support.Handlers(logs, func() support.Running { return lookverbs.Running(a.App, l, args) })
		},
	})
}

// leafLife returns how long certificates are valid that kthwd renews, as tests want it; 0 means
// the default. A minute stands for a year, and upstream looks at its files as often then.
func leafLife() time.Duration {
	life, err := time.ParseDuration(os.Getenv("KTHWD_TEST_LEAF_LIFE"))
	if err != nil || life <= 0 {
		return 0
	}
	appliance.ReadCertificatesEvery(life / 20)
	return life
}

// introduce logs the versions and the main settings of this start.
func (a *app) introduce(log *slog.Logger, l *config.Loader) {
	v := linked.Linked()
	in := []any{"version", cli.Version, "commit", cli.Commit, "go", v.Go}
	if l.Config.Is(config.RoleController) {
		in = append(in, "kubernetes", v.Kubernetes, "etcd", v.Etcd)
	}
	log.Info("starting", in...)
	attrs := []any{"file", l.File(), "role", strings.Join(l.Config.Role, ","), "metrics-address", l.Config.MetricsAddress}
	var warnings []string
	if c := l.Config.Controller; l.Config.Is(config.RoleController) {
		attrs = append(attrs, "name", c.Name, "data-dir", c.DataDir, "advertise-address", c.AdvertiseAddress,
			"secure-port", c.SecurePort, "health-address", c.HealthAddress,
			"service-cluster-ip-range", c.ServiceClusterIPRange, "cluster-cidr", c.ClusterCIDR)
		warnings = c.Warnings()
	}
	if c := l.Config.LB; l.Config.Is(config.RoleLB) {
		attrs = append(attrs, "listen", strings.Join(c.Listen, ","), "backend", strings.Join(c.Backends, ","),
			"check", c.Check, "balance", c.Balance)
		if c.DiscoveryKubeconfig != "" {
			attrs = append(attrs, "discovery-kubeconfig", c.DiscoveryKubeconfig, "discovery-cache", c.DiscoveryCache)
		}
		warnings = append(warnings, config.LBWarnings(c)...)
	}
	for _, f := range webClients(l.Config).Findings() {
		warnings = append(warnings, f.Text+": "+f.Do)
	}
	log.Info("configuration; kthwd config shows all of it", attrs...)
	for _, w := range warnings {
		log.Warn(w)
	}
}

// changed returns a function that passes the state on to systemd until a stop is requested.
func (a *app) changed(ctx context.Context) func(ready bool, reason string) {
	last := ""
	return func(ready bool, reason string) {
		if ready {
			reason = "ready"
		}
		if reason == last || ctx.Err() != nil {
			return
		}
		last = reason
		a.notify.status(sentence(reason))
	}
}

// sentence drops the component from "COMPONENT: waiting for …": an operator needs to
// know only what is missing.
func sentence(reason string) string {
	if _, what, found := strings.Cut(reason, ": "); found && strings.HasPrefix(what, "waiting for ") {
		return what
	}
	return reason
}

// ready tells systemd and the operator that all components are ready, and what is next: the
// page, the status and kubectl.
func (a *app) ready(log *slog.Logger, l *config.Loader, timeline []supervise.Status) {
	a.notify.ready()
	c := l.Config
	kubectl := a.AsTyped(kubectlCommand(l))
	page, ask := pageURL(c), a.AsTyped(statusCommand(l))
	took := time.Since(a.started).Round(10 * time.Millisecond)
	if c.LogFormat == logging.JSON || cli.IsJournal(a.Err) {
		log.Info("all ready", "took", took, "page", page, "status", ask, "try", kubectl)
		return
	}
	if page != "" {
		page += "\n"
	}
	fmt.Fprintf(a.Err, "%s\n%s%s\n%s\n", timelineText(timeline, took), page, ask, kubectl)
}

// pageURL is the address of the status page as a browser on this machine reaches it; "" if
// there is none.
func pageURL(c config.Config) string {
	host, port, err := net.SplitHostPort(c.MetricsAddress)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	scheme := "http"
	if w, err := status.ReadWeb(c.MetricsWeb); c.MetricsWeb != "" && err == nil && w.TLS {
		scheme = "https"
	}
	return scheme + "://" + net.JoinHostPort(host, port) + "/"
}

// statusCommand asks this kthwd, in whichever directory it is typed.
func statusCommand(l *config.Loader) string {
	switch {
	case l.Origin("data-dir") == config.OriginFlag:
		return "kthwd status --data-dir=" + text.ShellWord(cli.Absolute(l.Config.Controller.DataDir))
	case l.File() != "" && l.File() != config.DefaultFile:
		return "kthwd status --config=" + text.ShellWord(cli.Absolute(l.File()))
	}
	return "kthwd status"
}

// timelineText lists how long each component took to start.
func timelineText(timeline []supervise.Status, total time.Duration) string {
	width := len("all ready")
	for _, s := range timeline {
		width = max(width, len(s.Name))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-*s  %7s  %8s\n", width, "", "took", "ready at")
	for _, s := range timeline {
		fmt.Fprintf(&b, "%-*s  %6.2fs  %7.2fs\n", width, s.Name, s.Took.Seconds(), s.ReadyAt.Seconds())
	}
	fmt.Fprintf(&b, "%-*s  %7s  %7.2fs\n", width, "all ready", "", total.Seconds())
	return b.String()
}
