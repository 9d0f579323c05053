// Package etcd runs the etcd member of this controller as a component.
//
// New parses nothing from disk and touches no file; Run does the rest and blocks
// until its context ends:
//
//	m, err := etcd.New(etcd.Config{Args: args, Log: log})
//	node := group.Add(m)
//
// Run prepares the data directory, learns the current members when it joins a
// cluster, starts the server and waits for a quorum without a deadline. It calls
// ready once the member votes and has taken part in a write. A
// lone member gets a short election timeout, unless Config says that it had others
// when it last ran.
//
// A stop has an order that the caller can break: RequestTransfer, or Run's own
// stop, moves leadership to another member first, while every member holds its
// writes, so that no write fails; the API server must stop before etcd. When there
// is no quorum any stop would hang, and Abandon makes the waiting requests fail.
//
// A fatal line in etcd's log ends Run with an error, never the process. The
// package does not change the membership (see membership) and does not repair data
// (see etcdfiles and recovery); ForceAlone is there for recovery only.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/upstream"
)

// Member is the member of this controller.
type Member struct {
	Cfg  *embed.Config
	Log  *slog.Logger
	Open func() // called once the socket is open, before there is a quorum; may be nil
	// admit is asked at the first quorum whether this controller belongs to the
	// cluster; it may wait as long as ctx lasts. May be nil.
	Admit     func(ctx context.Context, server *embed.Etcd) error
	Counted   func(server *embed.Etcd) // called once it belongs, and now and then; may be nil
	HadQuorum atomic.Bool              // there was a quorum, in this life or in an earlier one

	fsyncs fsyncs // of the last minutes
	peers  peersHeard

	mu     sync.Mutex
	server *embed.Etcd // nil until started
	fatal  chan error  // what etcd's logger called fatal; etcd cannot go on after it
	leave  chan struct{}

	strangers atomic.Pointer[string] // peers of another CA, as lookForStrangers found them; nil for none

	leaderless time.Time // since when no leader is known; zero while there is one

	gate writeGate // shut for a moment when leadership moves
	Hope *hope     // lost in a stop without a quorum
}

var _ supervise.Component = (*Member)(nil)

// New prepares the member that args describe. It touches no file.
func New(args []program.Arg, log *slog.Logger) (*Member, error) {
	e := &Member{Log: log, fatal: make(chan error, 1), leave: make(chan struct{}, 1), Hope: newHope()}
	var err error
	if e.Cfg, err = Parse(args, embed.NewZapLoggerBuilder(upstream.NewZap(log, e.died))); err != nil {
		return nil, err
	}
	e.Cfg.GRPCAdditionalServerOptions = append(e.Cfg.GRPCAdditionalServerOptions,
		grpc.ChainUnaryInterceptor(e.Hope.intercept, e.gate.intercept),
		grpc.StreamInterceptor(e.awaitLeader)) // this one is before etcd's own, which are chained
	return e, nil
}

// Name implements supervise.Component.
func (e *Member) Name() string { return program.Etcd }

// Run implements supervise.Component. It is ready once this member has taken
// part in a raft write, hence once there is a quorum; until then it waits
// without a deadline, because a member that gives up can never form one.
func (e *Member) Run(ctx context.Context, ready func()) error {
	if err := e.prepare(); err != nil {
		return err
	}
	report := supervise.Report(ctx)
	if err := e.learnMembers(ctx, report); err != nil || ctx.Err() != nil {
		return err
	}
	server, err := e.start(ctx, report)
	if err != nil || server == nil {
		return err
	}
	e.mu.Lock()
	e.server = server
	e.mu.Unlock()
	if e.Open != nil {
		e.Open()
	}
	return e.watch(ctx, server, report, ready)
}

// prepare makes the data directory, readable by its owner only, and looks at what is in it.
func (e *Member) prepare() error {
	if err := os.MkdirAll(e.Cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := etcdfiles.RefuseForeign(e.Cfg.Dir); err != nil {
		return err
	}
	if err := etcdfiles.Check(e.Cfg.Dir); err != nil {
		return etcdfiles.Unusable(e.Cfg.Dir, err)
	}
	return nil
}

// start runs embed.StartEtcd, which may log a fatal line or panic on damaged
// data; both become errors here. It returns nil, nil when ctx ends first.
func (e *Member) start(ctx context.Context, report supervise.Reporter) (*embed.Etcd, error) {
	type result struct {
		server *embed.Etcd
		err    error
	}
	started := make(chan result, 1)
	go func() {
		defer func() {
			if v := recover(); v != nil {
				started <- result{nil, fmt.Errorf("%v", v)}
			}
		}()
		server, err := embed.StartEtcd(e.Cfg)
		started <- result{server, err}
	}()
	report.Starting("opening " + e.Cfg.Dir)
	select {
	case r := <-started:
		return r.server, e.explain(r.err)
	case err := <-e.fatal:
		return nil, etcdfiles.Unusable(e.Cfg.Dir, err)
	case <-ctx.Done():
		// StartEtcd knows no context; if it still returns, close what it made.
		if r := <-started; r.server != nil {
			e.close(r.server)
		}
		return nil, nil
	}
}

// explain adds advice to an error of StartEtcd that is about the data.
func (e *Member) explain(err error) error {
	var network *net.OpError
	if err == nil || errors.As(err, &network) {
		return err
	}
	for _, r := range refusals {
		if strings.Contains(err.Error(), r.theirs) {
			return advice.With(fmt.Errorf("%s: %w", r.ours, err), r.hint)
		}
	}
	return etcdfiles.Unusable(e.Cfg.Dir, err)
}

// refusals are etcd's reasons not to begin that are no fault of the data
// (etcdserver/bootstrap.go), with what to do.
var refusals = []struct{ theirs, ours, hint string }{
	{"has already been bootstrapped", "the cluster knows this member, but its data are not here",
		"if they are on a disk that is not mounted, mount it; if they are lost, run kthwd member remove and kthwd member add on another controller, then kthwd join here"},
	{"error validating peerURLs", "initial-cluster does not list the members that the cluster has",
		"kthwd member list on another controller shows them; kthwd member add there and kthwd join here make it right"},
	{"cannot fetch cluster info from peer urls", "no member of the cluster answers",
		"check that the other controllers run and that their peer ports (2380) can be reached from here"},
	{"incompatible with current running cluster", "the etcd in this kthwd does not fit the other members'",
		"kthwd version on every controller shows which ones run"},
}

// close stops the member: clients first, then leadership is handed over, then
// the write-ahead log is closed (embed/etcd.go:Close).
func (e *Member) close(server *embed.Etcd) {
	select {
	case <-server.Server.ReadyNotify():
		e.TransferLeadership(context.Background(), server, slog.LevelWarn) // if it leads again, or still
	default:
		// Close waits for the client listeners, which wait for a quorum that never
		// was, or for the end of the server (embed/serve.go:serve).
		server.Server.HardStop()
	}
	server.Close()
	os.Remove(socketPath(e.Cfg))
}

// RequestTransfer makes another member the leader, if there is one, while this one goes on
// as a follower. It does not block: a stop tries again before the listeners close.
func (e *Member) RequestTransfer() {
	select {
	case e.leave <- struct{}{}:
	default:
	}
}

// died is called from etcd's logger, on the goroutine that cannot go on.
func (e *Member) died(err error) {
	select {
	case e.fatal <- err:
	default:
	}
}

// Running is the member once it has started, or nil.
func (e *Member) Running() *embed.Etcd {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.server
}
