package appliance

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

	"kthwd/appliance/supervise"
)

// etcd is the member of this controller.
type etcd struct {
	cfg  *embed.Config
	log  *slog.Logger
	open func() // called once the socket is open, before there is a quorum; may be nil
	// admit is asked at the first quorum whether this controller belongs to the
	// cluster; it may wait as long as ctx lasts. May be nil.
	admit   func(ctx context.Context, server *embed.Etcd) error
	counted func(server *embed.Etcd) // called once it belongs, and now and then; may be nil
	once    atomic.Bool              // there was a quorum, in this life or in an earlier one

	fsyncs fsyncs // of the last minutes
	peers  peersHeard

	mu     sync.Mutex
	server *embed.Etcd // nil until started
	fatal  chan error  // what etcd's logger called fatal; etcd cannot go on after it
	leave  chan struct{}

	strangers atomic.Pointer[string] // peers of another CA, as lookForStrangers found them; nil for none

	leaderless time.Time // since when no leader is known; zero while there is one

	gate writeGate // shut for a moment when leadership moves
	hope *hope     // lost in a stop without a quorum
}

var _ supervise.Component = (*etcd)(nil)

// newEtcd prepares the member that args describe. It touches no file.
func newEtcd(args []arg, log *slog.Logger) (*etcd, error) {
	e := &etcd{log: log, fatal: make(chan error, 1), leave: make(chan struct{}, 1), hope: newHope()}
	var err error
	if e.cfg, err = parseEtcd(args, embed.NewZapLoggerBuilder(newZap(log, e.died))); err != nil {
		return nil, err
	}
	e.cfg.GRPCAdditionalServerOptions = append(e.cfg.GRPCAdditionalServerOptions,
		grpc.ChainUnaryInterceptor(e.hope.intercept, e.gate.intercept),
		grpc.StreamInterceptor(e.awaitLeader)) // this one is before etcd's own, which are chained
	return e, nil
}

// Name implements supervise.Component.
func (e *etcd) Name() string { return nameEtcd }

// Run implements supervise.Component. It is ready once this member has taken
// part in a raft write, hence once there is a quorum; until then it waits
// without a deadline, because a member that gives up can never form one.
func (e *etcd) Run(ctx context.Context, ready func()) error {
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
	if e.open != nil {
		e.open()
	}
	return e.watch(ctx, server, report, ready)
}

// prepare makes the data directory, readable by its owner only, and looks at what is in it.
func (e *etcd) prepare() error {
	if err := os.MkdirAll(e.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := refuseForeignData(e.cfg.Dir); err != nil {
		return err
	}
	if err := checkEtcdData(e.cfg.Dir); err != nil {
		return unusable(e.cfg.Dir, err)
	}
	return nil
}

// start runs embed.StartEtcd, which may log a fatal line or panic on damaged
// data; both become errors here. It returns nil, nil when ctx ends first.
func (e *etcd) start(ctx context.Context, report supervise.Reporter) (*embed.Etcd, error) {
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
		return nil, unusable(e.cfg.Dir, err)
	case <-ctx.Done():
		// StartEtcd knows no context; if it still returns, close what it made.
		if r := <-started; r.server != nil {
			e.close(r.server)
		}
		return nil, nil
	}
}

// explain adds advice to an error of StartEtcd that is about the data.
func (e *etcd) explain(err error) error {
	var network *net.OpError
	if err == nil || errors.As(err, &network) {
		return err
	}
	for _, r := range refusals {
		if strings.Contains(err.Error(), r.theirs) {
			return WithHint(fmt.Errorf("%s: %w", r.ours, err), r.hint)
		}
	}
	return unusable(e.cfg.Dir, err)
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
func (e *etcd) close(server *embed.Etcd) {
	select {
	case <-server.Server.ReadyNotify():
		e.transferLeadership(context.Background(), server, slog.LevelWarn) // if it leads again, or still
	default:
		// Close waits for the client listeners, which wait for a quorum that never
		// was, or for the end of the server (embed/serve.go:serve).
		server.Server.HardStop()
	}
	server.Close()
	os.Remove(socketPath(e.cfg))
}

// HandOver makes another member the leader, if there is one, while this one goes on
// as a follower. It does not block: a stop tries again before the listeners close.
func (e *etcd) HandOver() {
	select {
	case e.leave <- struct{}{}:
	default:
	}
}

// died is called from etcd's logger, on the goroutine that cannot go on.
func (e *etcd) died(err error) {
	select {
	case e.fatal <- err:
	default:
	}
}

// running is the member once it has started, or nil.
func (e *etcd) running() *embed.Etcd {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.server
}
