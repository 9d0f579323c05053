// Package lease runs work while this controller holds a lease of the cluster, term after
// term.
//
// kube-controller-manager and kube-scheduler may act on one controller only. Their own
// leader election ends the process when a lease is lost, so kthwd holds the leases, under
// upstream's names, with client-go's election:
//
//	l := lease.New(lease.Config{…})
//	return l.Run(ctx, ready, standby)
//
// standby prepares a term while another controller leads, and returns the function that
// runs the term. A term must end soon after its context. When its lease is lost, it has
// the lease's safety margin (a minute if the fence applies); a term that takes longer ends
// Run with an error, because two must never act at once. The lease is released only after
// the term's work has stopped.
//
// A term also ends when its program wants to end the process (package term): the fence
// closes, the term's context ends, and the next term follows as after any failure. A program
// that does not stop then is left behind, and its lease expires. Each such leak keeps memory,
// so after a few of them Run returns an error.
//
// A Fence closes the remaining gap: the API server of the same process refuses writes from
// a component whose lease is over, so that a process that slept longer than its lease does
// no harm. Fences.Wrap must be in the API server's handler chain before the first term
// begins.
//
// Record is the state of one lease for the status. The package does not depend on the
// work of a term.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	componentbaseconfig "k8s.io/component-base/config"

	"kthwd/appliance/cause"
	"kthwd/appliance/supervise"
	"kthwd/appliance/term"
)

// The pause between two terms of a component.
const (
	firstTermPause = 500 * time.Millisecond
	lastTermPause  = 15 * time.Second // below aliveCheck's patience
	steadyTerm     = 5 * time.Minute  // after a term this long the next pause is short again

	// How long a term without its lease may take to stop while the API server refuses its
	// writes. A request that hangs on a disk ends only when the disk answers.
	fencedPatience = time.Minute

	// Terms that may be left behind before Run returns an error. Each keeps the caches of a
	// program, tens of MiB in a small cluster.
	leakLimit  = 5
	leakWindow = time.Hour

	longestProof = time.Minute // of a term after a failed one
)

// errLeaseLost is the error of a term whose lease could not be renewed in time.
var errLeaseLost = errors.New("lease lost")

// Config describes a lease for New.
type Config struct {
	Component string
	Identity  string // of this controller
	Election  componentbaseconfig.LeaderElectionConfiguration
	Client    *rest.Config
	ForTerm   func() *rest.Config // the client from the next term on; nil for Client
	Fence     *Fence
	Record    *Record // the lease as status shows it; nil in tests
	Pause     *Pause  // while it lasts, the lease is left to others; nil for never
	Log       *slog.Logger
}

// Lease is the right to act as the only kube-controller-manager or kube-scheduler of the
// cluster. kthwd holds it itself, under upstream's name, because the programs' own leader
// election ends the process when the lease is lost
// (kube-controller-manager/app/controllermanager.go, kube-scheduler/app/server.go:
// OnStoppedLeading). Make one with New and run it once.
type Lease struct {
	component string
	identity  string
	election  componentbaseconfig.LeaderElectionConfiguration
	client    *rest.Config
	forTerm   func() *rest.Config
	fence     *Fence
	record    *Record
	pause     *Pause
	log       *slog.Logger

	leaks  []time.Time           // of terms that were left behind
	proof  time.Duration         // how long the next term must last before it is reported as ready
	failed atomic.Pointer[error] // of the newest request for the lease; nil after a success
}

// New prepares a lease. It makes no connection.
func New(c Config) *Lease {
	return &Lease{
		component: c.Component, identity: c.Identity, election: c.Election, client: c.Client, forTerm: c.ForTerm,
		fence: c.Fence, record: c.Record, pause: c.Pause, log: c.Log,
	}
}

// standby prepares a term while another controller leads, and returns the function that
// runs the term. It is called once for each term. The term's clients connect to the API
// server at the URL server, if it is not empty, and not at that of their kubeconfig.
//
// term blocks until its context ends and everything it started has stopped. The context
// ends with the lease.
type standby func(ctx context.Context, server string) (term func(ctx context.Context) error, err error)

// Run campaigns and leads, term after term, until ctx ends. It returns an error only if it
// would be unsafe or useless to continue in this process: when a term did not stop within
// the lease's safety margin, or within fencedPatience if the fence keeps it from acting, or
// when leakLimit terms within leakWindow did not stop at all.
func (l *Lease) Run(ctx context.Context, ready func(), prepare standby) error {
	report := supervise.Report(ctx)
	l.fence.limit = l.election.RenewDeadline.Duration
	if !l.election.LeaderElect {
		l.fence.disable()
	}
	pause := firstTermPause
	for ctx.Err() == nil {
		l.pause.enter(ctx, func(why string) { report.Standby("left to others " + why); ready() })
		if l.forTerm != nil {
			l.client = l.forTerm()
		}
		begun := time.Now()
		running, stop := l.pause.paused(ctx)
		err := l.term(running, report, ready, prepare)
		paused := running.Err() != nil && ctx.Err() == nil
		stop()
		l.pause.exit()
		var stuck *stuckTermError
		switch {
		case errors.As(err, &stuck):
			return err
		case ctx.Err() != nil:
			return nil
		case paused && !errors.Is(err, term.ErrStillRunning):
			l.log.Info("term ended: the lease is left to others " + l.pause.reason())
			continue
		case err == nil:
			err = errors.New("ended without being asked to")
		case errors.Is(err, term.ErrStillRunning):
			if tooMany := l.leak(time.Now(), err); tooMany != nil {
				return tooMany
			}
		}
		lasted := time.Since(begun)
		if lasted > steadyTerm {
			pause = firstTermPause
		}
		l.proof = proofAfter(err, lasted)
		if exit := new(term.Exit); errors.As(err, &exit) && exit.Stack != "" {
			l.log.Error("panic, the term has ended", "err", err, "stacktrace", exit.Stack)
		}
		l.log.Warn("term ended, beginning again", "err", err, "pause", pause)
		report.Restarted(restartReason(err), err)
		report.Starting("begins again after: " + err.Error())
		supervise.Sleep(ctx, pause)
		pause = min(2*pause, lastTermPause)
	}
	return nil
}

// restartReason is the reason under which the end of a term is counted: a lost lease, the
// kind of a known cause, or "failed".
func restartReason(err error) string {
	var exit *term.Exit
	switch {
	case errors.As(err, &exit):
		return exit.Reason
	case errors.Is(err, errLeaseLost):
		return "lease_lost"
	}
	return cause.Kind(err, "failed")
}

// proofAfter is how long the term after a failed one must last before it counts as ready. A
// program that fails again and again leads for a while each time, and must not look ready
// then.
func proofAfter(err error, lasted time.Duration) time.Duration {
	if errors.Is(err, errLeaseLost) || lasted > steadyTerm {
		return 0
	}
	return min(lasted+lasted/2, longestProof)
}

// term runs one term: prepare, campaign, lead, stop, release the lease.
func (l *Lease) term(ctx context.Context, report supervise.Reporter, ready func(), prepare standby) error {
	t := term.New(ctx, l.component)
	defer t.Close()
	server := ""
	if len(l.leaks) > 0 {
		server = l.fence.admitOnly(t.Number()) // what was left behind must not write on this term's lease
	}
	l.fence.shut.Store(false)
	t.OnExit(func() { l.fence.shut.Store(true) })
	lead, err := l.prepared(t, server, prepare)
	if err != nil {
		return err
	}
	if !l.election.LeaderElect {
		defer l.proven(func() { report.Ready(""); ready() })()
		return l.serve(&campaign{keep: func() {}}, t, lead)
	}
	campaign, err := l.campaign(report, ready)
	if err != nil {
		return err
	}
	defer campaign.resign() // last: the lease is released when the work has stopped
	select {
	case <-campaign.won:
	case <-t.Context().Done():
		return exitOf(t, nil)
	}
	l.log.Info("leading", "identity", l.identity)
	l.record.lead()
	defer l.record.end()
	defer l.proven(func() { report.Ready("leading"); ready() })()
	return l.serve(campaign, t, lead)
}

// exitOf returns why t has ended; err if no exit has ended it.
func exitOf(t *term.Term, err error) error {
	if exit := t.Exited(); exit != nil {
		return exit
	}
	return err
}

// prepared prepares a term that reaches the API server at a URL of its own, unless it is
// empty.
func (l *Lease) prepared(t *term.Term, server string, prepare standby) (lead func(context.Context) error, err error) {
	err = <-t.Go(func(ctx context.Context) (err error) {
		lead, err = prepare(ctx, server)
		return err
	})
	return lead, err
}

// proven calls ready when the term has lasted long enough, unless stop is called before.
func (l *Lease) proven(ready func()) (stop func()) {
	if l.proof == 0 {
		ready()
		return func() {}
	}
	timer := time.AfterFunc(l.proof, ready)
	return func() { timer.Stop() }
}

// serve runs the term until it ends or its lease is lost. The lease is renewed until the
// term's work has stopped.
func (l *Lease) serve(c *campaign, t *term.Term, lead func(context.Context) error) error {
	done, ended, over := t.Go(lead), t.Context().Done(), c.over
	var patience time.Duration
	var late <-chan time.Time
	lost, exited := false, false // exited: before the lease was lost
	for {
		select {
		case err := <-done:
			return l.finished(c, lost && !exited, err)
		case <-over:
			over, lost, exited = nil, true, t.Exited() != nil
			if t.Context().Err() == nil {
				l.log.Warn("lease lost, stopping", "margin", l.margin())
			}
			patience = l.patience()
			late = time.After(patience)
			t.End()
		case <-ended: // an exit, or kthwd is stopping
			ended = nil
			if !lost {
				patience = fencedPatience // the lease is still held
				late = time.After(patience)
			}
		case <-late:
			c.keep()
			if exit := t.Exited(); exit != nil && !lost && l.fenced() {
				return fmt.Errorf("%w; %w", exit, term.ErrStillRunning)
			}
			return &stuckTermError{l.component, patience}
		}
	}
}

// finished returns why a term has ended whose program returned err. A program whose lease is lost may
// exit for that, since the API server refuses its requests: the lease is the reason.
func (l *Lease) finished(c *campaign, lost bool, err error) error {
	still := errors.Is(err, term.ErrStillRunning)
	if still {
		c.keep()
	}
	switch {
	case !lost:
		return err
	case still:
		return fmt.Errorf("%w; %w", l.lost(), term.ErrStillRunning)
	}
	return l.lost()
}

// leak counts a term that was left behind. It returns an error when there have been too many,
// or when no fence keeps what was left from writing.
func (l *Lease) leak(now time.Time, last error) error {
	l.record.leaked()
	l.leaks = append(l.leaks, now)
	recent := 0
	for _, at := range l.leaks {
		if now.Sub(at) <= leakWindow {
			recent++
		}
	}
	switch {
	case !l.fenced():
		return fmt.Errorf("the process ends, so that two of %s never act at once: %w", l.component, last)
	case recent < leakLimit:
		return nil
	}
	return fmt.Errorf("%d terms within %v have left running code behind: the process ends, so that a new one begins without it; the last one: %w", leakLimit, leakWindow, last)
}

// patience is how long a term without its lease may take to stop.
func (l *Lease) patience() time.Duration {
	if l.fenced() {
		return fencedPatience
	}
	return l.margin()
}

// failing records the error of a request for the lease; nil after a success.
func (l *Lease) failing(report supervise.Reporter, err error) {
	report.Failing(err)
	if err == nil {
		l.failed.Store(nil)
		return
	}
	l.failed.Store(&err)
}

// lost is the error of a term whose lease is over, with the reason if it is known.
func (l *Lease) lost() error {
	if err := l.failed.Load(); err != nil {
		return fmt.Errorf("%w: %w", errLeaseLost, *err)
	}
	return errLeaseLost
}

// fenced tells whether the component uses the API server of this process, which accepts no
// write from it without the lease. Its kubeconfig may name another API server.
func (l *Lease) fenced() bool {
	return l.fence.server != "" && l.client != nil && l.client.Host == l.fence.server
}

// margin is the time between the loss of the lease here and the moment at which another
// controller may take it. Work may continue until then.
func (l *Lease) margin() time.Duration {
	return l.election.LeaseDuration.Duration - l.election.RenewDeadline.Duration
}

// stuckTermError means that two controllers could soon act at once.
type stuckTermError struct {
	component string
	patience  time.Duration
}

func (e *stuckTermError) Error() string {
	return fmt.Sprintf("did not stop within %v of the end of its term: the process ends, so that two of %s never act at once", e.patience, e.component)
}

// campaign is one run of an elector.
type campaign struct {
	won    <-chan struct{} // closed when this controller holds the lease
	over   <-chan struct{} // closed when it has lost the lease, or will never hold it
	resign func()          // releases the lease; blocks until done
	keep   func()          // makes resign stop the renewals only, so that the lease expires
}

// campaign starts an elector. It has a context of its own, because the lease must be
// renewed until the work has stopped.
func (l *Lease) campaign(report supervise.Reporter, ready func()) (*campaign, error) {
	client, err := coordinationv1.NewForConfig(l.leaseClient())
	if err != nil {
		return nil, err
	}
	won, over := make(chan struct{}), make(chan struct{})
	lock := l.fence.lock(&resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: l.election.ResourceNamespace, Name: l.election.ResourceName},
		Client:     client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: l.identity},
	}, func(err error) { l.failing(report, err) })
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            lock,
		LeaseDuration:   l.election.LeaseDuration.Duration,
		RenewDeadline:   l.election.RenewDeadline.Duration,
		RetryPeriod:     l.election.RetryPeriod.Duration,
		ReleaseOnCancel: true,
		Name:            l.component,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(won) },
			OnStoppedLeading: func() {},
			OnNewLeader:      func(id string) { l.newLeader(id, won, report, ready) },
		},
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(over)
		elector.Run(ctx)
	}()
	return &campaign{won: won, over: over, resign: func() { cancel(); <-over }, keep: func() { lock.keep.Store(true) }}, nil
}

// newLeader records the holder of the lease. A won term ends only when its work has
// stopped; another holder alone does not turn it into a standby.
func (l *Lease) newLeader(id string, won <-chan struct{}, report supervise.Reporter, ready func()) {
	l.record.held(id)
	select {
	case <-won:
		return
	default:
	}
	if id != l.identity {
		report.Standby("lease held by " + id)
		ready()
	}
}

// leaseClient is a separate client with the component's identity, so that renewals never
// wait behind the component's requests.
func (l *Lease) leaseClient() *rest.Config {
	c := rest.CopyConfig(l.client)
	c.UserAgent = "kthwd/leader-election"
	c.Timeout = l.election.RenewDeadline.Duration / 2 // as resourcelock.NewFromKubeconfig does
	return c
}
