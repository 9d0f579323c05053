// Package discovery follows the addresses of a cluster's API servers: the
// EndpointSlices of the service default/kubernetes, into which each API server
// writes itself.
//
//	d, err := discovery.New(discovery.Config{Kubeconfig: path, Cache: file, Log: log})
//	…
//	start(d.Last())          // from the cache; empty when there is none
//	d.OnList(server.SetDiscovered)
//	err = d.Run(ctx, ready)
//
// It queries the server of the kubeconfig, which may be the load balancer itself, and, if
// that server does not answer, each backend of the present and earlier lists. It lists,
// then watches, and repeats this for as long as it runs. While no API server can be
// reached, the last list stays in force. A list without backends changes nothing either,
// because some API server has answered with it.
//
// If the kubeconfig has a certificate in the group kthwd:load-balancers, the package renews it: see
// renew.go.
//
// The package links Kubernetes' client, which package lb does not. It does not test
// backends: package check does.
package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"kthwd/appliance/supervise"
	"kthwd/lb"
)

// Config configures a Discovery.
type Config struct {
	Kubeconfig string // file of a user that may get, list and watch endpointslices in the namespace default
	Cache      string // file that stores the last list; "" for none
	// Static returns the configured backends, HOST:PORT, as further servers to query.
	// Run's goroutine calls it. May be nil.
	Static func() []string
	Log    *slog.Logger // nil logs nothing
}

// Discovery follows one cluster. Create it with New, call OnList, then Run it once; the
// other methods may be called at any time.
type Discovery struct {
	Config
	set     func([]string) error
	cluster *rest.Config // from the last readable kubeconfig
	first   chan struct{}
	cache   cache

	// The fields below are used by Run's goroutine only.
	slices  map[string][]string // backends in each EndpointSlice, by its name
	broken  string              // the last reported error of reading the kubeconfig again
	empty   bool                // the last list had no backend
	failing bool                // no server answers
	pause   pause
	report  supervise.Reporter
	ready   func()

	renewals atomic.Int64 // of the certificate, by this process

	mu     sync.Mutex
	last   cached // the list in force
	status lb.DiscoveryStatus
	errors [reasons]uint64
}

// New reads the kubeconfig and the cache. A fault of the kubeconfig is returned as an
// *lb.Problem; a fault of the cache is logged as a warning.
func New(c Config) (*Discovery, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Static == nil {
		c.Static = func() []string { return nil }
	}
	cluster, err := readKubeconfig(c.Kubeconfig)
	if err != nil {
		return nil, err
	}
	d := &Discovery{
		Config: c, cluster: cluster, first: make(chan struct{}), cache: cache{path: c.Cache, create: createBeside},
		pause: pause{least: time.Second, most: 30 * time.Second}, ready: func() {},
	}
	d.last, err = d.cache.read()
	if err != nil {
		d.count(cacheErrors)
		d.Log.Warn("cached list of backends not used; the next list replaces it", "err", err)
	}
	if list := d.Last(); len(list) > 0 {
		d.Log.Info("backends from the cache", "backends", strings.Join(list, ","), "file", c.Cache)
		close(d.first)
	}
	return d, nil
}

// OnList sets the function that receives each new list. Call it before Run.
func (d *Discovery) OnList(set func([]string) error) { d.set = set }

// Last returns the list in force: before Run, the cached one.
func (d *Discovery) Last() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.last.Backends)
}

// former returns backends of earlier lists. An API server that stops removes itself from
// the list, so after all have stopped the list holds the last one to stop, which need not
// be the first to start again.
func (d *Discovery) former() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.last.Former)
}

// First returns a channel that is closed once there is a list, cached or new.
func (d *Discovery) First() <-chan struct{} { return d.first }

// Status returns how the list is followed at present.
func (d *Discovery) Status() lb.DiscoveryStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status
}

// Name implements supervise.Component.
func (d *Discovery) Name() string { return "lb-discovery" }

// Run implements supervise.Component. It returns only when ctx ends. It is ready at once
// when there are cached or configured backends.
func (d *Discovery) Run(ctx context.Context, ready func()) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(d.Log.Handler()).V(1)) // client-go's info lines become debug lines
	d.report = supervise.Report(ctx)
	var once sync.Once
	d.ready = func() { once.Do(ready) }
	d.reportState("")
	over := make(chan struct{})
	go func() {
		defer close(over)
		d.keepCertificate(ctx)
	}()
	defer func() { <-over }()
	for ctx.Err() == nil {
		if d.round(ctx) {
			d.pause.reset()
		}
		d.pause.wait(ctx)
	}
	return nil
}

// round tries one server after another until one can be followed, and follows it until
// that ends. It returns false when none can be followed.
func (d *Discovery) round(ctx context.Context) bool {
	d.rereadKubeconfig()
	var errs []error
	for _, s := range servers(d.cluster, d.Last(), d.Static(), d.former()) {
		followed, err := d.follow(ctx, s)
		switch {
		case ctx.Err() != nil:
			return true
		case followed:
			d.Log.Debug("the watch of the backends ended", "server", s.Host, "err", err)
			return true
		}
		errs = append(errs, fmt.Errorf("%s: %w", s.Host, err))
	}
	d.noteFailed(errs)
	return false
}

// rereadKubeconfig applies a changed kubeconfig. A broken one changes nothing.
func (d *Discovery) rereadKubeconfig() {
	cluster, err := readKubeconfig(d.Kubeconfig)
	if err == nil {
		d.cluster, d.broken = cluster, ""
		return
	}
	if text := err.Error(); text != d.broken {
		d.broken = text
		d.Log.Warn("changed kubeconfig not used: the previous content stays in force", "err", err)
	}
}

// noteFailed records that no server answers, and logs it once.
func (d *Discovery) noteFailed(errs []error) {
	err := errors.Join(errs...)
	text := joinLines(err)
	d.updateStatus(func(s *lb.DiscoveryStatus) { s.Server, s.Error = "", text })
	if d.failing {
		d.Log.Debug("backends still not followed", "err", text)
	} else {
		d.failing = true
		d.Log.Warn("backends not followed: the last list stays", append([]any{"err", text}, hint(err)...)...)
	}
	d.reportState(text)
}

// reportState reports ready, with the trouble if there is any. Without a backend it
// reports waiting.
func (d *Discovery) reportState(trouble string) {
	const waiting = "waiting for the first list of backends"
	some := len(d.Last())+len(d.Static()) > 0
	switch {
	case some && trouble == "":
		d.ready()
		d.report.Ready("")
	case some:
		d.ready()
		d.report.Ready("the last list stays: " + trouble)
	case trouble == "":
		d.report.Waiting(waiting)
	default:
		d.report.Waiting(waiting + ": " + trouble)
	}
}

// noteFollowed records that a server is followed, and logs it once.
func (d *Discovery) noteFollowed(server string) {
	before := d.Status().Server
	d.updateStatus(func(s *lb.DiscoveryStatus) { s.Server, s.Error, s.LastSuccess = server, "", time.Now() })
	if d.failing || before == "" {
		d.Log.Info("following the backends", "server", server)
	} else if before != server {
		d.Log.Debug("following the backends", "server", server)
	}
	d.failing = false
	if d.empty {
		d.reportState(noneReady)
	} else {
		d.reportState("")
	}
}

const noneReady = "the API server lists no backend that is ready"

// updateStatus changes the status and sets Since when Error appears or vanishes.
func (d *Discovery) updateStatus(f func(*lb.DiscoveryStatus)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.status
	f(&d.status)
	if d.status.Since.IsZero() || (was.Error == "") != (d.status.Error == "") {
		d.status.Since = time.Now()
	}
}

// apply puts the list of all slices in force.
func (d *Discovery) apply() {
	found := merge(d.slices)
	last := d.Last()
	if len(found) == 0 {
		if !d.empty {
			d.empty = true
			d.Log.Warn(noneReady+": nothing changes", "last", strings.Join(last, ","))
		}
		return
	}
	d.empty = false
	if !slices.Equal(found, last) {
		if err := d.set(found); err != nil {
			d.count(apiErrors)
			d.Log.Error("list of backends not accepted: the last list stays", "err", err)
			return
		}
		d.Log.Info("backends discovered", "backends", strings.Join(found, ","))
		d.mu.Lock()
		d.last = d.last.followedBy(found)
		d.mu.Unlock()
		if len(last) == 0 {
			close(d.first)
		}
	}
	d.save()
}

// save writes the cache when its content differs, and logs a failure once.
func (d *Discovery) save() {
	d.mu.Lock()
	content := d.last
	d.mu.Unlock()
	complaint, err := d.cache.write(content)
	if err != nil {
		d.count(cacheErrors)
	}
	if complaint != "" {
		d.Log.Warn("list of backends not cached: a restart will begin without it", "err", complaint)
	}
}

// pause is the time between rounds: it doubles, with jitter so that it differs between
// machines.
type pause struct {
	least, most time.Duration
	next        time.Duration
}

func (p *pause) reset() { p.next = 0 }

func (p *pause) wait(ctx context.Context) {
	p.next = min(max(2*p.next, p.least), p.most)
	t := time.NewTimer(p.next/2 + rand.N(p.next/2+1))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// joinLines returns a joined error as one line.
func joinLines(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
