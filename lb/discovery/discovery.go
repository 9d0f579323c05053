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
// It asks the server of the kubeconfig, which may well be the load balancer that
// it works for, and where that does not answer, each backend that is or was known. It
// lists, then watches, and begins again for as long as it runs: an API that cannot
// be reached leaves the last list in force. A list without a backend changes
// nothing either, for somebody has answered.
//
// The package links Kubernetes' client, which package lb does not. It judges no
// backend: that is what checks are for.
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
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"kthwd/appliance/supervise"
	"kthwd/lb"
)

// Config says whom to ask, and what to do with the answer.
type Config struct {
	Kubeconfig string // of a user that may get, list and watch endpointslices in the namespace default
	Cache      string // file that keeps the last list; "" for none
	// Static are the backends that are configured, HOST:PORT: further places to ask.
	// It is called from Run's goroutine. May be nil.
	Static func() []string
	Log    *slog.Logger // nil logs nothing
}

// Discovery is one follower. Make it with New, call OnList, then Run it once; the
// other methods may be called at any time.
type Discovery struct {
	Config
	set     func([]string) error
	cluster *rest.Config // of the kubeconfig, when it could be read last
	first   chan struct{}
	cache   cache

	// These belong to Run's goroutine.
	slices  map[string][]string // backends in each EndpointSlice, by its name
	broken  string              // what is wrong with the kubeconfig since it was read
	empty   bool                // the last list had no backend
	failing bool                // nobody answers
	pause   pause
	report  supervise.Reporter
	ready   func()

	mu     sync.Mutex
	last   cached // in force
	status lb.DiscoveryStatus
	errors [reasons]uint64
}

// New reads the kubeconfig and the cache. What is wrong with the first is an
// *lb.Problem, what is wrong with the second a warning in the log.
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

// OnList says who gets each new list. Call it before Run.
func (d *Discovery) OnList(set func([]string) error) { d.set = set }

// Last is the list in force: before Run, what was cached.
func (d *Discovery) Last() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.last.Backends)
}

// former are backends that have left the list. An API server that stops takes
// itself off it: after all have stopped it has the one that was the last to go,
// which need not be the first to come back.
func (d *Discovery) former() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.last.Former)
}

// First is closed as soon as there is a list, cached or new.
func (d *Discovery) First() <-chan struct{} { return d.first }

// Status tells how the list is followed.
func (d *Discovery) Status() lb.DiscoveryStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status
}

// Name implements supervise.Component.
func (d *Discovery) Name() string { return "lb-discovery" }

// Run implements supervise.Component. It ends when ctx does, and not before. It
// is ready at once where there are backends without it.
func (d *Discovery) Run(ctx context.Context, ready func()) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(d.Log.Handler()).V(1)) // what client-go says at info is for debug
	d.report = supervise.Report(ctx)
	var once sync.Once
	d.ready = func() { once.Do(ready) }
	d.say("")
	for ctx.Err() == nil {
		if d.round(ctx) {
			d.pause.reset()
		}
		d.pause.wait(ctx)
	}
	return nil
}

// round asks one server after another until one lets itself be followed, and
// follows it to the end. It is false when none does.
func (d *Discovery) round(ctx context.Context) bool {
	d.reread()
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
	d.failed(errs)
	return false
}

// reread takes a kubeconfig that has changed. A broken one changes nothing.
func (d *Discovery) reread() {
	cluster, err := readKubeconfig(d.Kubeconfig)
	if err == nil {
		d.cluster, d.broken = cluster, ""
		return
	}
	if text := err.Error(); text != d.broken {
		d.broken = text
		d.Log.Warn("kubeconfig not read again: what it said before stays", "err", err)
	}
}

// failed says, once, that nobody answers.
func (d *Discovery) failed(errs []error) {
	err := errors.Join(errs...)
	text := oneLine(err)
	d.change(func(s *lb.DiscoveryStatus) { s.Server, s.Error = "", text })
	if d.failing {
		d.Log.Debug("backends still not followed", "err", text)
	} else {
		d.failing = true
		d.Log.Warn("backends not followed: the last list stays", append([]any{"err", text}, hint(err)...)...)
	}
	d.say(text)
}

// say puts into the record what is wrong, if anything is. Without any backend
// there is nothing to be ready with.
func (d *Discovery) say(trouble string) {
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

// follows says, once, that somebody answers.
func (d *Discovery) follows(server string) {
	before := d.Status().Server
	d.change(func(s *lb.DiscoveryStatus) { s.Server, s.Error, s.LastSuccess = server, "", time.Now() })
	if d.failing || before == "" {
		d.Log.Info("following the backends", "server", server)
	} else if before != server {
		d.Log.Debug("following the backends", "server", server)
	}
	d.failing = false
	if d.empty {
		d.say(noneReady)
	} else {
		d.say("")
	}
}

const noneReady = "the API server lists no backend that is ready"

// change keeps Since right.
func (d *Discovery) change(f func(*lb.DiscoveryStatus)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.status
	f(&d.status)
	if d.status.Since.IsZero() || (was.Error == "") != (d.status.Error == "") {
		d.status.Since = time.Now()
	}
}

// apply puts the list in force that the known slices make.
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
			d.Log.Error("list of backends not taken: the last list stays", "err", err)
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

// save writes the cache when it differs, and says once that it cannot.
func (d *Discovery) save() {
	d.mu.Lock()
	content := d.last
	d.mu.Unlock()
	complaint, err := d.cache.write(content)
	if err != nil {
		d.count(cacheErrors)
	}
	if complaint != "" {
		d.Log.Warn("list of backends not cached: a restart will not know it", "err", complaint)
	}
}

// pause is the time between rounds: it doubles, and it is never quite the same
// on two machines.
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

// oneLine is err for a log.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
