// Package clusterwatch follows the objects of the API that can take a cluster's control
// plane away from its operators: the bootstrap roles, webhooks, APIServices.
//
//	w := clusterwatch.New(clusterwatch.Config{Client: api.Loopback, Restore: …})
//	go w.Run(ctx)
//	w.Findings() // for each report; never blocks
//
// It costs a handful of watches, which are silent while nothing changes, and six small
// lists a minute from the server's cache. It ends nothing and makes nothing unready. All requests go to the API
// server of this process.
package clusterwatch

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
	"kthwd/rbacseed"
)

const (
	serverPoll     = time.Second
	lookEvery      = 20 * time.Second
	requestTimeout = 10 * time.Second
)

// A Restorer makes objects again that are missing or lack something. It returns what it
// has written, also beside an error.
type Restorer func(context.Context, kubernetes.Interface) ([]rbacseed.Change, error)

// Config configures a Watch.
type Config struct {
	// Client returns the configuration of a privileged client. It fails until there is
	// an API server, and must not block.
	Client func() (*rest.Config, error)

	// Restore is called after each change of a bootstrap object, and once at the start.
	Restore []Restorer

	// Event writes a Kubernetes Event; it must not block. Nil writes none.
	Event func(reason, text string)

	AuditLog   string // its path, for advice; empty for none
	Kubeconfig string // of the administrator, for advice
	Log        *slog.Logger
}

// Watch follows the objects. Make one with New.
type Watch struct {
	cfg      Config
	roles    *roles
	failures *failures
	services *services
}

// kubectl returns a command for a shell.
func (c Config) kubectl(words ...string) string {
	return "kubectl --kubeconfig " + text.ShellWord(c.Kubeconfig) + " " + strings.Join(words, " ")
}

// New makes a Watch. It does no I/O.
func New(cfg Config) *Watch {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Event == nil {
		cfg.Event = func(string, string) {}
	}
	return &Watch{cfg: cfg, roles: newRoles(cfg), failures: newFailures(cfg), services: &services{cfg: cfg}}
}

// Run watches until ctx ends. It begins when the API server is ready, and so never takes
// the first start's objects for changes.
func (w *Watch) Run(ctx context.Context) {
	config, client := w.server(ctx)
	if config == nil {
		return
	}
	var parts sync.WaitGroup
	parts.Go(func() { w.roles.run(ctx, config, client) })
	parts.Go(func() {
		for ctx.Err() == nil {
			now := time.Now()
			w.failures.look(ctx, client, now)
			w.services.look(ctx, client, now)
			supervise.Sleep(ctx, lookEvery)
		}
	})
	parts.Wait()
}

// server waits for the API server. It returns nil if ctx ends first.
func (w *Watch) server(ctx context.Context) (*rest.Config, kubernetes.Interface) {
	for ctx.Err() == nil {
		if config, client, err := w.connect(ctx); err == nil {
			return config, client
		}
		supervise.Sleep(ctx, serverPoll)
	}
	return nil, nil
}

func (w *Watch) connect(ctx context.Context) (*rest.Config, kubernetes.Interface, error) {
	config, err := w.cfg.Client()
	if err != nil {
		return nil, nil, err
	}
	config.UserAgent = "kthwd"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return config, client, client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// Findings returns what the watch has found. It does not block.
func (w *Watch) Findings() []status.Finding {
	now := time.Now()
	return slices.Concat(w.roles.findings(now), w.failures.findings(now), w.services.findings())
}

// Describe implements prometheus.Collector.
func (w *Watch) Describe(ch chan<- *prometheus.Desc) { w.roles.restored.Describe(ch) }

// Collect implements prometheus.Collector.
func (w *Watch) Collect(ch chan<- prometheus.Metric) { w.roles.restored.Collect(ch) }
