// Package supervise starts components in the order of their dependencies,
// keeps one record of their states, and stops them in reverse.
//
// The wiring reads as a list:
//
//	g := supervise.New(log)
//	etcd := g.Add(newEtcd(cfg))
//	api := g.Add(newAPIServer(cfg), etcd).StopWithin(20 * time.Second)
//	g.Add(newScheduler(cfg), api)
//	err := g.Run(ctx)
//
// A component starts as soon as all of its dependencies are ready; independent
// components start in parallel. Each component has its own context, which is cancelled
// only after all its dependents have returned: in every stop, etcd outlives the
// apiserver, and the apiserver outlives its clients.
//
// A component with clients on the network can warn them before it stops: Leaving ends
// as soon as the group begins to stop, before the component's own dependents have
// stopped.
//
// A component that returns unasked ends the whole group in the same order, and Run
// returns its error. A component that exceeds its stop budget is named in the log, and
// also in Run's error unless a failure caused the stop. The stop continues without it,
// so that its dependencies still close properly.
//
// A panic is not caught: it crashes the process after a log line that names the
// component, because a program that has panicked must not continue to write. The group
// never restarts a component. A component may run again by itself (see Reporter). The
// package exits no process, installs no signal handler and imports only the standard
// library.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Component is a long-running part of the process.
type Component interface {
	// Name returns the name for people, such as "etcd" or "kube-apiserver". Logs,
	// metrics and status use it. It does not change.
	Name() string
	// Run blocks until ctx ends and everything that it started has stopped. It calls
	// ready at most once, on success only, and dependents then start. To return
	// before ctx ends is a failure, with or without an error.
	Run(ctx context.Context, ready func()) error
}

// DefaultStopBudget bounds the stop of a component without a call of StopWithin.
const DefaultStopBudget = 10 * time.Second

// Group is a set of components with dependencies. Make one with New, Add the
// components, then Run it once.
type Group struct {
	log   *slog.Logger
	now   func() time.Time
	begun time.Time
	nodes []*Node
	rec   record

	stopOnce sync.Once
	leaving  context.Context // ends just before stopping is closed, with the same cause
	leave    context.CancelCauseFunc
	stopping chan struct{}
	cause    error // why the group stops; nil when it was asked to stop. Read only after stopping is closed.

	overrunMu sync.Mutex
	overruns  []error
}

// Node is a component's place in its group.
type Node struct {
	component  Component
	after      []*Node
	dependents []*Node
	budget     atomic.Int64   // a time.Duration
	status     Status         // guarded by the record
	reasons    map[string]int // number of restarts by reason; guarded by the record

	ready chan struct{}
	gone  chan struct{} // closed when the component and all its dependents have returned or exceeded their budgets
}

// New returns an empty group that logs state changes to log.
func New(log *slog.Logger) *Group {
	g := &Group{log: log, now: time.Now, stopping: make(chan struct{})}
	g.leaving, g.leave = context.WithCancelCause(context.Background())
	return g
}

// Add adds c to the group. It starts once all components in after are ready, and stops
// before any of them. Call Add before Run. Dependencies must be added first, so there
// is never a cycle.
func (g *Group) Add(c Component, after ...*Node) *Node {
	n := &Node{
		component: c, after: after,
		status: Status{Name: c.Name(), State: Waiting},
		ready:  make(chan struct{}), gone: make(chan struct{}),
	}
	n.StopWithin(DefaultStopBudget)
	for _, d := range after {
		d.dependents = append(d.dependents, n)
	}
	g.nodes = append(g.nodes, n)
	return n
}

// StopWithin sets how long the component may take from the cancellation of its
// context to its return. It may be called again while the group runs. It returns n,
// so that calls can be chained.
func (n *Node) StopWithin(d time.Duration) *Node {
	n.budget.Store(int64(d))
	return n
}

// Run starts all components, blocks until each has returned or exceeded its stop
// budget, and returns why the group ended: the first failure, else the exceeded
// budgets, else nil. Budgets exceeded after a failure are only logged. A stop takes
// at most the largest sum of budgets along a chain of dependencies.
func (g *Group) Run(ctx context.Context) error {
	g.begun = g.now()
	var wg sync.WaitGroup
	for _, n := range g.nodes {
		wg.Go(func() { g.live(n) })
	}
	unhook := context.AfterFunc(ctx, func() { g.stop(nil) })
	wg.Wait()
	unhook()
	if g.cause != nil {
		return g.cause
	}
	return errors.Join(g.overruns...)
}

// Fail ends the group in order, as if a component had returned err. The first call,
// or the first failure of a component, determines what Run returns. Fail does not
// block. It may be called from any goroutine, also before Run.
func (g *Group) Fail(err error) { g.stop(err) }

func (g *Group) stop(cause error) {
	g.stopOnce.Do(func() {
		g.cause = cause
		if cause != nil {
			g.log.Error("stopping all components", "err", cause)
		} else {
			g.log.Info("stopping all components")
		}
		g.leave(cause)
		close(g.stopping)
	})
}

// Leaving returns a context that ends when the group begins to stop, before any
// component is asked to stop. ctx is the context of a component's Run, or derived from
// it. The context.Cause is the failure that stops the group, or context.Canceled when
// the group was asked to stop. Without a group the context never ends.
func Leaving(ctx context.Context) context.Context {
	if g := Report(ctx).g; g != nil {
		return g.leaving
	}
	return context.Background()
}

// Leaving returns the context that the function Leaving has for the group's components.
func (g *Group) Leaving() context.Context { return g.leaving }

func (g *Group) isStopping() bool {
	select {
	case <-g.stopping:
		return true
	default:
		return false
	}
}

// live is the whole life of one component.
func (g *Group) live(n *Node) {
	defer n.leave()
	if !g.awaitDependencies(n) {
		g.set(n, Stopped, "")
		return
	}
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), reporterKey{}, Reporter{g, n}))
	defer cancel()
	g.set(n, Starting, "")
	started := g.now()
	done := make(chan error, 1)
	go g.call(ctx, n, started, done)

	select {
	case err := <-done:
		g.returnedEarly(n, err)
	case <-g.stopping:
		g.stopNode(n, cancel, done)
	}
}

// leave lets n's dependencies stop, but only after n's own dependents have gone: n may
// have returned early while these are still stopping.
func (n *Node) leave() {
	for _, d := range n.dependents {
		<-d.gone
	}
	close(n.gone)
}

// awaitDependencies waits until all dependencies of n are ready. It returns false if
// the group stops first.
func (g *Group) awaitDependencies(n *Node) bool {
	for _, d := range n.after {
		g.set(n, Waiting, "waiting for "+d.status.Name)
		select {
		case <-d.ready:
		case <-g.stopping:
			return false
		}
	}
	return !g.isStopping()
}

// call runs the component and sends its result to done.
func (g *Group) call(ctx context.Context, n *Node, started time.Time, done chan<- error) {
	defer func() {
		if v := recover(); v != nil {
			// A Go panic trace does not name the component.
			g.log.Error("panic, the process crashes now", "component", n.status.Name, "panic", fmt.Sprint(v))
			panic(v)
		}
	}()
	var once sync.Once
	done <- n.component.Run(ctx, func() { once.Do(func() { g.markReady(n, started) }) })
}

func (g *Group) markReady(n *Node, started time.Time) {
	now := g.now()
	took := now.Sub(started)
	g.rec.update(n, func(s *Status) {
		s.Took, s.ReadyAt = took, now.Sub(g.begun)
		if s.State == Starting || s.State == Waiting {
			s.enter(Ready, "", now)
		}
	})
	g.log.Info("ready", "component", n.status.Name, "took", took.Round(time.Millisecond))
	close(n.ready)
}

func (g *Group) returnedEarly(n *Node, err error) {
	if err == nil {
		err = errors.New("ended without being asked to")
	}
	err = fmt.Errorf("%s: %w", n.status.Name, err)
	g.rec.update(n, func(s *Status) { s.LastError = err.Error() })
	if g.isStopping() { // it failed while its dependents were stopping
		g.log.Warn("ended during the stop", "component", n.status.Name, "err", err)
	}
	g.set(n, Failed, err.Error())
	g.stop(err)
}

// stopNode waits for n's dependents, then gives n its budget to return.
func (g *Group) stopNode(n *Node, cancel func(), done <-chan error) {
	for _, d := range n.dependents {
		select {
		case <-d.gone:
		case err := <-done:
			g.returnedEarly(n, err)
			return
		}
	}
	g.set(n, Stopping, "")
	begun := g.now()
	cancel()
	budget := time.Duration(n.budget.Load())
	timer := time.NewTimer(budget)
	defer timer.Stop()
	select {
	case err := <-done:
		g.set(n, Stopped, "")
		took := g.now().Sub(begun).Round(time.Millisecond)
		if err != nil && !errors.Is(err, context.Canceled) {
			g.log.Warn("stopped with an error", "component", n.status.Name, "took", took, "err", err)
			return
		}
		g.log.Info("stopped", "component", n.status.Name, "took", took)
	case <-timer.C:
		g.overran(n, budget)
	}
}

func (g *Group) overran(n *Node, budget time.Duration) {
	err := fmt.Errorf("%s: did not stop within %v", n.status.Name, budget)
	g.log.Error("given up", "component", n.status.Name, "err", err)
	g.set(n, Failed, err.Error())
	g.overrunMu.Lock()
	defer g.overrunMu.Unlock()
	g.overruns = append(g.overruns, err)
}

func (g *Group) set(n *Node, state State, reason string) {
	g.rec.update(n, func(s *Status) { s.enter(state, reason, g.now()) })
}

// Timeline lists the components that have become ready, in the order in which they did.
func (g *Group) Timeline() []Status {
	all := slices.DeleteFunc(g.Status(), func(s Status) bool { return s.ReadyAt == 0 })
	slices.SortStableFunc(all, func(a, b Status) int { return int(a.ReadyAt - b.ReadyAt) })
	return all
}
