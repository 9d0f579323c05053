package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"kthwd/appliance/logging"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// control answers questions about this process: on the unix socket of the data
// directory, for its owner, who may also change log levels; and on the metrics
// address, for everybody, read only.
type control struct {
	socket  string
	address string // "" for none
	report  func() status.Report
	metrics http.Handler
	logs    *logging.Logs
	log     *slog.Logger
}

var _ supervise.Component = (*control)(nil)

func newControl(p *plant, g *supervise.Group, e *etcd) *control {
	versions := Versions()
	return &control{
		socket: p.socket.control, address: p.o.Metrics,
		metrics: metricsHandler(g, e), logs: p.o.Logs, log: p.o.Logs.Logger("status"),
		report: func() status.Report {
			ready, reason := g.Ready()
			quorum := e.Quorum()
			return status.Report{
				Version: p.o.Version, Kubernetes: versions.Kubernetes, Etcd: versions.Etcd,
				PID: os.Getpid(), Started: p.o.Started, Ready: ready, Reason: reason,
				Components: g.Status(), Quorum: &quorum,
			}
		},
	}
}

// Name implements supervise.Component.
func (c *control) Name() string { return "status" }

// Run implements supervise.Component.
func (c *control) Run(ctx context.Context, ready func()) error {
	if err := os.Remove(c.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	unix, err := net.Listen("unix", c.socket)
	if err != nil {
		return err
	}
	servers := []*http.Server{newHTTPServer(c.private())}
	listeners := []net.Listener{unix}
	if c.address != "" {
		tcp, err := net.Listen("tcp", c.address)
		if err != nil {
			return errors.Join(err, unix.Close())
		}
		servers, listeners = append(servers, newHTTPServer(c.public())), append(listeners, tcp)
	}
	return serveAll(ctx, ready, servers, listeners)
}

// serveAll serves until ctx ends or a server fails, and leaves none running.
func serveAll(ctx context.Context, ready func(), servers []*http.Server, listeners []net.Listener) error {
	done := make(chan error, len(servers))
	for i, s := range servers {
		go func() { done <- s.Serve(listeners[i]) }()
	}
	ready()
	var failed error
	select {
	case failed = <-done:
		done <- failed
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, s := range servers {
		if s.Shutdown(stop) != nil {
			s.Close()
		}
	}
	for range servers {
		<-done
	}
	return failed
}

// newHTTPServer bounds what a client can hold on to.
func newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
}

// public is what anybody may read.
func (c *control) public() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", c.status)
	mux.HandleFunc("GET /readyz", c.readyz)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.Handle("GET /metrics", c.metrics)
	return mux
}

// private adds what only the owner of the data directory may do.
func (c *control) private() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", c.public())
	mux.HandleFunc("GET /log-level", c.levels)
	mux.HandleFunc("PUT /log-level", c.setLevels)
	return mux
}

func (c *control) status(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(c.report()) // the client has gone; there is nobody to tell
}

func (c *control) readyz(w http.ResponseWriter, _ *http.Request) {
	if r := c.report(); !r.Ready {
		http.Error(w, r.Reason, http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ok\n")
}

func (c *control) levels(w http.ResponseWriter, _ *http.Request) {
	levels := c.logs.Levels()
	names := make([]string, 0, len(levels))
	for name := range levels {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(w, "%s=%s\n", name, levels[name])
	}
}

// setLevels reads "component=level" lines: all of them are right, or none is taken.
func (c *control) setLevels(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<10))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	lines := strings.Fields(string(body))
	for _, line := range lines {
		if _, _, err := logging.ParseLevel(line); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	for _, line := range lines {
		component, level, found := strings.Cut(line, "=")
		if !found {
			component, level = "", line
		}
		if err := c.logs.SetLevel(component, level); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		c.log.Info("log level changed", "of", component, "level", level)
	}
	c.levels(w, r)
}

// metricsHandler serves kthwd's own series. etcd's and Kubernetes' are at their
// own ports, as upstream; the Go and process collectors cover all of them, since
// they are one process.
func metricsHandler(g *supervise.Group, e *etcd) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(&stateCollector{g: g, etcd: e}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

var (
	readyDesc  = prometheus.NewDesc("kthwd_ready", "1 when every component is ready or standby.", nil, nil)
	stateDesc  = prometheus.NewDesc("kthwd_component_state", "1 for the state that the component is in.", []string{"component", "state"}, nil)
	termsDesc  = prometheus.NewDesc("kthwd_component_restarts_total", "Terms of the component that ended in a failure and were begun again in process.", []string{"component"}, nil)
	startDesc  = prometheus.NewDesc("kthwd_startup_seconds", "Time from the start of the process to the component's first ready.", []string{"component"}, nil)
	votersDesc = prometheus.NewDesc("kthwd_etcd_members", "Voting members of the etcd cluster.", nil, nil)
	quorumDesc = prometheus.NewDesc("kthwd_etcd_quorum", "1 while this member knows a leader.", nil, nil)
)

// stateCollector reads the state record when Prometheus asks.
type stateCollector struct {
	g    *supervise.Group
	etcd *etcd
}

var states = []supervise.State{supervise.Waiting, supervise.Starting, supervise.Ready, supervise.Standby, supervise.Stopping, supervise.Stopped, supervise.Failed}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{readyDesc, stateDesc, termsDesc, startDesc, votersDesc, quorumDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ready, _ := c.g.Ready()
	gauge(readyDesc, number(ready))
	for _, s := range c.g.Status() {
		for _, state := range states {
			gauge(stateDesc, number(s.State == state), s.Name, string(state))
		}
		ch <- prometheus.MustNewConstMetric(termsDesc, prometheus.CounterValue, float64(s.Restarts), s.Name)
		if s.ReadyAt > 0 {
			gauge(startDesc, s.ReadyAt.Seconds(), s.Name)
		}
	}
	q := c.etcd.Quorum()
	gauge(votersDesc, float64(q.Members))
	gauge(quorumDesc, number(q.Leader != ""))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
