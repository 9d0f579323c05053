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
// recovery). ForceAlone is for recovery only.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/etcdgateway"
	"kthwd/appliance/etcdline"
	"kthwd/appliance/etcdmetrics"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/upstream"
	"kthwd/appliance/writegate"
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
	copies     copies
	absence    func(ctx context.Context) (back func(), err error) // see OnAbsence
	endReaders func()                                             // see OnClose; nil for nobody
	report     func(state string)                                 // tells a state that is ready; nil before there is one. mu guards it

	strangers atomic.Pointer[string] // what lookForStrangers last reported; nil for none

	leaderless time.Time // when the leader was lost; zero while there is one

	gate     writegate.Gate       // closed for a moment while leadership moves
	requests *requests            // abandoned in a stop without a quorum
	gateway  *etcdgateway.Gateway // etcd's HTTP API; nil if it is disabled or etcd's own serves it
}

var _ supervise.Component = (*Member)(nil)

// New prepares the member that c describes. It opens no file and no port.
func New(c Config) (*Member, error) {
	e := &Member{
		log: c.Log, onFirstQuorum: c.OnFirstQuorum, onMembership: c.OnMembership,
		fatal: make(chan error, 1), leave: make(chan struct{}, 1), requests: newRequests(),
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
		grpc.ChainUnaryInterceptor(e.requests.intercept, e.gate.Intercept, e.maintain),
		grpc.StreamInterceptor(e.awaitLeader)) // it runs before etcd's own, which are chained
	return e, nil
}

// Name implements supervise.Component.
func (e *Member) Name() string { return program.Etcd }

// Run implements supervise.Component. It is ready once this member has taken part in a
// raft write, which requires a quorum. It waits for that without a deadline, because a
// member that gives up can never form a quorum.
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

// prepare makes the data directory, readable by its owner only, and checks existing data.
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

// start runs embed.StartEtcd, which may log a fatal line or panic on damaged data. Both
// become errors here. It returns nil, nil if ctx ends first.
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
		return nil, e.explain(err)
	case <-ctx.Done():
		// StartEtcd takes no context. If it still returns, its server must be closed.
		if r := <-started; r.server != nil {
			e.close(r.server)
		}
		return nil, nil
	}
}

// explain adds advice to an error of StartEtcd, unless the network caused it.
func (e *Member) explain(err error) error {
	var network *net.OpError
	if err == nil || errors.As(err, &network) {
		return err
	}
	if r := known(err, append(slices.Clip(refusals), fallenBehind...)); r != nil {
		return r
	}
	return etcdfiles.Unusable(e.cfg.Dir, err)
}

// known returns err with advice if it is in the table, and nil for any other.
func known(err error, table []refusal) error {
	for _, r := range table {
		if strings.Contains(err.Error(), r.theirs) {
			return advice.With(fmt.Errorf("%s: %w", r.ours, err), r.hint)
		}
	}
	return nil
}

type refusal struct{ theirs, ours, hint string }

// refusals are the errors with which etcd refuses to start although its data are intact
// (etcdserver/bootstrap.go, storage/schema/schema.go), with advice.
var refusals = []refusal{
	{"has already been bootstrapped", "the cluster knows this member, but its data are not here",
		"if they are on a disk that is not mounted, mount it; if they are lost, run kthwd member remove and kthwd member add on another controller, then kthwd join here"},
	{"error validating peerURLs", "initial-cluster does not list the members that the cluster has",
		"kthwd member list on another controller shows them; kthwd member add there and kthwd join here make it right"},
	{"cannot fetch cluster info from peer urls", "no member of the cluster answers",
		"check that the other controllers run and that their peer ports (2380) can be reached from here"},
	{"is not supported", "a newer etcd has written these data, and they are good",
		"run the kthwd that wrote them, or a newer one; to come back to this one, run kthwd upgrade back there first"},
	{"incompatible with current running cluster", "the etcd in this kthwd does not fit the other members'",
		"kthwd version on every controller shows which ones run"},
}

// fallenBehind are the panics of a member that hears what it lacks, in StartEtcd or later: it is
// older than the cluster (version/downgrade.go), or its log is older than what it has acknowledged
// (go.etcd.io/raft/v3/log.go).
var fallenBehind = []refusal{
	{"invalid downgrade; server version is lower", "etcd's other members are of a newer minor, and this one cannot take part; its data are good",
		"run the kthwd of the other controllers here: kthwd upgrade status on one of them says which"},
	{"Was the raft log corrupted, truncated, or lost?", "etcd's data here are older than what this member has acknowledged to the others, such as a copy from before",
		"they cannot be used: kthwd member remove and kthwd member add on another controller, then kthwd join --replace-data here"},
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
