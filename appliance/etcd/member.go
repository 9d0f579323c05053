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
	"kthwd/appliance/etcdgateway"
	"kthwd/appliance/etcdmetrics"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/upstream"
	"kthwd/appliance/writegate"
)

// Config is what New needs to know of a member.
type Config struct {
	Args      []program.Arg // etcd's command line
	Log       *slog.Logger
	HadQuorum bool // an earlier run in this data directory had a quorum
	HadOthers bool // … and the cluster had other members

	// OnOpen is called once, when the socket of a lone member is open and before it
	// has a quorum; may be nil.
	OnOpen func()
	// Admit decides at the first quorum whether this controller belongs to the
	// cluster; it may wait as long as ctx lasts. May be nil.
	Admit func(ctx context.Context, e *Member, server *embed.Etcd) error
	// OnMembership is called once the controller belongs, and every few seconds after
	// that; may be nil.
	OnMembership func(server *embed.Etcd)
}

// Member is the etcd member of this controller. Make one with New, run it once. Its
// other methods may be called from any goroutine, before, during and after Run.
type Member struct {
	cfg          *embed.Config
	log          *slog.Logger
	onOpen       func()
	admit        func(ctx context.Context, e *Member, server *embed.Etcd) error
	onMembership func(server *embed.Etcd)
	hadQuorum    atomic.Bool // in this run or in an earlier one

	fsyncs etcdmetrics.Fsyncs // of the last minutes
	peers  etcdmetrics.PeersHeard

	mu     sync.Mutex
	server *embed.Etcd // nil until started
	fatal  chan error  // what etcd's logger called fatal; etcd cannot continue after it
	leave  chan struct{}

	strangers atomic.Pointer[string] // peers of another CA, as lookForStrangers found them; nil for none

	leaderless time.Time // since when no leader is known; zero while there is one

	gate     writegate.Gate       // shut for a moment while leadership moves
	requests *requests            // abandoned in a stop without a quorum
	gateway  *etcdgateway.Gateway // etcd's HTTP API; nil when it is switched off
}

var _ supervise.Component = (*Member)(nil)

// New prepares the member that c describes. It touches no file.
func New(c Config) (*Member, error) {
	e := &Member{
		log: c.Log, admit: c.Admit, onMembership: c.OnMembership,
		fatal: make(chan error, 1), leave: make(chan struct{}, 1), requests: newRequests(),
	}
	e.hadQuorum.Store(c.HadQuorum)
	var err error
	if e.cfg, err = Parse(c.Args, embed.NewZapLoggerBuilder(upstream.NewZap(c.Log, e.died))); err != nil {
		return nil, err
	}
	switch {
	case c.HadOthers:
		useDefaultTiming(e.cfg)
	case alone(e.cfg):
		e.onOpen = c.OnOpen
	}
	e.cfg.GRPCAdditionalServerOptions = append(e.cfg.GRPCAdditionalServerOptions,
		grpc.ChainUnaryInterceptor(e.requests.intercept, e.gate.Intercept),
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
	if err := e.refuseToShutOut(ctx); err != nil {
		return err
	}
	server, err := e.start(ctx, report)
	if err != nil || server == nil {
		return err
	}
	e.mu.Lock()
	e.server = server
	e.mu.Unlock()
	if e.onOpen != nil {
		e.onOpen()
	}
	return e.watch(ctx, server, report, ready)
}

// prepare makes the data directory, readable by its owner only, and looks at what is in it.
func (e *Member) prepare() error {
	if err := os.MkdirAll(e.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := etcdfiles.RefuseForeign(e.cfg.Dir); err != nil {
		return err
	}
	if err := etcdfiles.Check(e.cfg.Dir); err != nil {
		return etcdfiles.Unusable(e.cfg.Dir, err)
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
		server, err := embed.StartEtcd(e.cfg)
		started <- result{server, err}
	}()
	report.Starting("opening " + e.cfg.Dir)
	select {
	case r := <-started:
		return r.server, e.explain(r.err)
	case err := <-e.fatal:
		return nil, etcdfiles.Unusable(e.cfg.Dir, err)
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
	return etcdfiles.Unusable(e.cfg.Dir, err)
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
	e.gateway.Close()
	server.Close()
	os.Remove(socketPath(e.cfg))
}

// RequestTransfer asks Run to make another member the leader, if there is one, while this
// one continues as a follower. It does not block: a stop tries again before the listeners
// close.
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

// Running returns the server once it has started, or nil.
func (e *Member) Running() *embed.Etcd {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.server
}
