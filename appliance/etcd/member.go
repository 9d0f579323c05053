// Package etcd runs the etcd member of this controller as a component.
//
// New parses nothing from disk and touches no file; Run does the rest and blocks
// until its context ends:
//
//	m, err := etcd.New(etcd.Config{Args: args, Log: log})
//	node := group.Add(m)
//
// Run prepares the data directory, fetches the current members if it joins a cluster,
// starts the server and waits for a quorum without a deadline. It calls ready once the
// member votes and has taken part in a write. A lone member gets a short election
// timeout, unless Config.HadOthers is set.
//
// Callers must keep the order of a stop: the API server stops before etcd.
// RequestTransfer, or the end of Run, first moves leadership to another member, while
// every member holds its writes, so that no write fails. Without a quorum the API
// server's stop would wait for its requests; Abandon makes them fail.
//
// A fatal line in etcd's log ends Run with an error, never the process. The package does
// not change the membership (see membership) and does not repair data (see etcdfiles and
// recovery).
package etcd

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"kthwd/appliance/etcd/dbcopy"
	"kthwd/appliance/etcd/embedded"
	"kthwd/appliance/etcd/leadership"
	"kthwd/appliance/etcd/peers"
	"kthwd/appliance/etcd/requests"
	"kthwd/appliance/etcdgateway"
	"kthwd/appliance/etcdline"
	"kthwd/appliance/etcdmetrics"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/upstream"
)

// Config describes a member for New.
type Config struct {
	Args      []program.Arg // etcd's command line
	Log       *slog.Logger
	HadQuorum bool // an earlier run in this data directory had a quorum
	HadOthers bool // in that run the cluster had other members

	// OnOpen is called once, when the socket of a lone member is open, before it has a
	// quorum. It may be nil.
	OnOpen func()
	// OnFirstQuorum decides whether this controller belongs to the cluster.
	// It may block until ctx ends, and may be nil.
	OnFirstQuorum func(ctx context.Context, e *Member, server *embed.Etcd) error
	// OnMembership is called once the controller belongs to the cluster, and every few
	// seconds after that. It may be nil.
	OnMembership func(server *embed.Etcd)
}

// Member is the etcd member of this controller. Make one with New and run it once. Its
// other methods may be called from any goroutine, before, during and after Run.
type Member struct {
	cfg           *embed.Config
	log           *slog.Logger
	onOpen        func()
	onFirstQuorum func(ctx context.Context, e *Member, server *embed.Etcd) error
	onMembership  func(server *embed.Etcd)
	hadQuorum     atomic.Bool // in this run or in an earlier one

	fsyncs etcdmetrics.Fsyncs // of the last minutes
	peers  etcdmetrics.PeersHeard

	mu     sync.Mutex
	server *embed.Etcd   // nil until started
	fatal  chan error    // a fatal line in etcd's log; etcd cannot continue after it
	leave  chan struct{} // RequestTransfer was called

	watched watched // what the polls have seen of the other members
	views   Views   // what the other controllers say; nil without them

	defrag     defragmentation
	copies     dbcopy.Open
	absence    func(ctx context.Context) (back func(), err error) // see OnAbsence
	endReaders func()                                             // see OnClose; nil for nobody
	report     func(state string)                                 // tells a state that is ready; nil before there is one. mu guards it

	strangers atomic.Pointer[string] // what lookForStrangers last reported; nil for none

	leaderless time.Time // when the leader was lost; zero while there is one

	transfers leadership.Transfers // its gate is closed for a moment while leadership moves
	requests  *requests.Requests   // abandoned in a stop without a quorum
	gateway   *etcdgateway.Gateway // etcd's HTTP API; nil if it is disabled or etcd's own serves it
}

var _ supervise.Component = (*Member)(nil)

// New prepares the member that c describes. It opens no file and no port.
func New(c Config) (*Member, error) {
	e := &Member{
		log: c.Log, onFirstQuorum: c.OnFirstQuorum, onMembership: c.OnMembership,
		fatal: make(chan error, 1), leave: make(chan struct{}, 1), requests: requests.New(), transfers: leadership.Transfers{Log: c.Log},
	}
	e.hadQuorum.Store(c.HadQuorum)
	var err error
	if e.cfg, err = etcdline.Parse(c.Args, embed.NewZapLoggerBuilder(upstream.NewZap(c.Log, e.died))); err != nil {
		return nil, err
	}
	switch {
	case c.HadOthers:
		etcdline.UseDefaultTiming(e.cfg)
	case etcdline.Alone(e.cfg):
		e.onOpen = c.OnOpen
	}
	e.cfg.GRPCAdditionalServerOptions = append(e.cfg.GRPCAdditionalServerOptions,
		grpc.ChainUnaryInterceptor(e.requests.Intercept, e.transfers.Gate.Intercept, e.maintain),
		grpc.StreamInterceptor(e.awaitLeader)) // it runs before etcd's own, which are chained
	return e, nil
}

// Name implements supervise.Component.
func (e *Member) Name() string { return program.Etcd }

// Run implements supervise.Component. It is ready once this member has taken part in a
// raft write, which requires a quorum. It waits for that without a deadline, because a
// member that gives up can never form a quorum.
func (e *Member) Run(ctx context.Context, ready func()) error {
	if err := embedded.Prepare(e.cfg.Dir); err != nil {
		return err
	}
	report := supervise.Report(ctx)
	if err := peers.Learn(ctx, e.cfg, e.log, report); err != nil || ctx.Err() != nil {
		return err
	}
	if err := peers.RefuseToShutOut(ctx, e.cfg); err != nil {
		return err
	}
	server, err := embedded.Start(ctx, e.cfg, e.fatal, report, e.close)
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

// close stops the member: it transfers leadership, then etcd closes its listeners and
// its write-ahead log (embed/etcd.go:Close).
func (e *Member) close(server *embed.Etcd) {
	if e.endReaders != nil {
		e.endReaders()
	}
	select {
	case <-server.Server.ReadyNotify():
		e.TransferLeadership(context.Background(), server, slog.LevelWarn) // if it still leads, or leads again
	default:
		// Close waits for the client listeners, and before the first quorum these wait
		// for a quorum or for the end of the server (embed/serve.go:serve).
		server.Server.HardStop()
	}
	e.gateway.Close()
	server.Close()
	os.Remove(etcdline.Socket(e.cfg))
}

// RequestTransfer makes Run transfer leadership to another member, if there is one. This
// member continues as a follower. It does not block; a stop tries again before the
// listeners close.
func (e *Member) RequestTransfer() {
	select {
	case e.leave <- struct{}{}:
	default:
	}
}

// TransferLeadership makes another member the leader, if this one leads and there is
// another voter, and holds the writes of all members until then. It blocks for a few
// seconds at most, and logs a failure at level.
func (e *Member) TransferLeadership(ctx context.Context, server *embed.Etcd, level slog.Level) {
	e.transfers.Move(ctx, server, level)
}

// died is called by etcd's logger on a fatal line, on the goroutine that logged it.
func (e *Member) died(err error) {
	select {
	case e.fatal <- err:
	default:
	}
}

// HasLoneTiming tells whether the member has the timing of a lone member.
func (e *Member) HasLoneTiming() bool { return etcdline.HasLoneTiming(e.cfg) }

// Running returns the server, or nil before it has started and after a removal.
func (e *Member) Running() *embed.Etcd {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.server
}
