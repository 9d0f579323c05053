package appliance

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/pkg/v3/flags"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"

	"kthwd/appliance/config"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// quorumPoll is how often the member is asked whether it knows a leader: an
// atomic load, so that watching costs nothing.
const quorumPoll = 500 * time.Millisecond

// countEvery is how many polls go by between two looks at the membership.
const countEvery = 10

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

	gateway *gateway // etcd's HTTP API; nil when it is switched off
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

// parseEtcd reads an etcd command line into etcd's own configuration. etcd's
// parser is not used because it exits the process (etcdmain/config.go:parse);
// what that does after flag.Parse is done here with the same exported helpers.
func parseEtcd(args []arg, logger func(*embed.Config) error) (*embed.Config, error) {
	cfg := embed.NewConfig()
	cfg.ZapLoggerBuilder = logger
	// 3.6 forgets this default outside etcdmain and would then log every request (embed/config.go:NewConfig).
	cfg.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration
	fs := flag.NewFlagSet(nameEtcd, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	cfg.AddFlags(fs)
	state := flags.NewSelectiveStringValue(embed.ClusterStateFlagNew, embed.ClusterStateFlagExisting)
	fs.Var(state, "initial-cluster-state", "")
	if err := fs.Parse(render(args)); err != nil {
		return nil, unknownFlag(nameEtcd, err)
	}
	cfg.ListenPeerUrls = flags.UniqueURLsFromFlag(fs, "listen-peer-urls")
	cfg.AdvertisePeerUrls = flags.UniqueURLsFromFlag(fs, "initial-advertise-peer-urls")
	cfg.ListenClientUrls = flags.UniqueURLsFromFlag(fs, "listen-client-urls")
	cfg.ListenClientHttpUrls = flags.UniqueURLsFromFlag(fs, "listen-client-http-urls")
	cfg.AdvertiseClientUrls = flags.UniqueURLsFromFlag(fs, "advertise-client-urls")
	cfg.ListenMetricsUrls = flags.UniqueURLsFromFlag(fs, "listen-metrics-urls")
	cfg.CORS = flags.UniqueURLsMapFromFlag(fs, "cors")
	cfg.HostWhitelist = flags.UniqueStringsMapFromFlag(fs, "host-whitelist")
	cfg.ClientTLSInfo.AllowedHostnames = flags.StringsFromFlag(fs, "client-cert-allowed-hostname")
	cfg.PeerTLSInfo.AllowedCNs = flags.StringsFromFlag(fs, "peer-cert-allowed-cn")
	cfg.PeerTLSInfo.AllowedHostnames = flags.StringsFromFlag(fs, "peer-cert-allowed-hostname")
	cfg.CipherSuites = flags.StringsFromFlag(fs, "cipher-suites")
	cfg.MaxConcurrentStreams = flags.Uint32FromFlag(fs, "max-concurrent-streams")
	cfg.ClusterState = state.String()
	fs.Visit(func(f *flag.Flag) { cfg.FlagsExplicitlySet[f.Name] = true })
	if err := etcdFeatureGates(cfg, fs); err != nil {
		return nil, err
	}
	fastElection(cfg)
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", nameEtcd, err)
	}
	return cfg, nil
}

func etcdFeatureGates(cfg *embed.Config, fs *flag.FlagSet) error {
	get := func(name string) *bool {
		v, err := flags.GetBoolFlagVal(fs, name)
		if err != nil {
			return nil
		}
		return v
	}
	gates := fs.Lookup(embed.ServerFeatureGateFlagName).Value.String()
	if err := embed.SetFeatureGatesFromExperimentalFlags(cfg.ServerFeatureGate, get, gates); err != nil {
		return fmt.Errorf("%s: %w", nameEtcd, err)
	}
	return nil
}

// hastyTick is the tick of a member that is alone, in milliseconds.
const hastyTick = 50

// fastElection lets a member that is alone elect itself in 50–250 ms instead of
// 0.1–1 s. Heartbeats go to nobody there, so nothing else depends on the tick; a
// shorter one wakes an idle process five times as often (raft, monitorLeader).
func fastElection(cfg *embed.Config) {
	set := cfg.FlagsExplicitlySet
	if alone(cfg) && !set["heartbeat-interval"] && !set["election-timeout"] {
		cfg.TickMs, cfg.ElectionMs = hastyTick, 250
	}
}

// steady gives a member back etcd's own timing: it was made as the only one, and
// has others by now.
func (e *etcd) steady() {
	if set := e.cfg.FlagsExplicitlySet; !set["heartbeat-interval"] && !set["election-timeout"] {
		d := embed.NewConfig()
		e.cfg.TickMs, e.cfg.ElectionMs = d.TickMs, d.ElectionMs
	}
}

// hasty tells whether the member has the timing of fastElection. As the leader of
// several it would step down whenever they do not answer for 250 ms.
func (e *etcd) hasty() bool {
	return e.cfg.TickMs == hastyTick && !e.cfg.FlagsExplicitlySet["heartbeat-interval"]
}

// alone tells whether the member was made as the only one of its cluster. Others
// may have been added since; then it may still wait for a quorum.
func alone(cfg *embed.Config) bool {
	return !strings.Contains(cfg.InitialCluster, ",") && cfg.ClusterState == embed.ClusterStateFlagNew
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

// refuseForeignData stops before etcd makes its own files in a directory that
// holds something else.
func refuseForeignData(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == "member" || strings.HasPrefix(entry.Name(), ".") || entry.Name() == "lost+found" {
			continue
		}
		return WithHint(fmt.Errorf("%s holds %q, which is not etcd's", dir, entry.Name()),
			"give etcd a directory of its own with --etcd-data-dir")
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

// watch calls ready at the first quorum, reports a lost and a regained one, and
// ends when ctx does or when etcd has ended by itself.
func (e *etcd) watch(ctx context.Context, server *embed.Etcd, report supervise.Reporter, ready func()) error {
	ticks := 0
	tick := time.NewTicker(quorumPoll)
	defer tick.Stop()
	first := server.Server.ReadyNotify()
	admitted := make(chan error, 1)
	state := quorumState{etcd: e, report: report}
	var asks sync.WaitGroup
	defer asks.Wait()
	asking, stopAsking := context.WithCancel(ctx)
	defer stopAsking()
	go e.lookForStrangers(asking, server) // not waited for: it may hang with the member, see gone
	for {
		select {
		case <-first:
			first = nil
			asks.Go(func() { admitted <- e.admission(asking, server) })
		case err := <-admitted:
			if err != nil {
				e.close(server)
				return err
			}
			ready()
			state.begun = true
			e.once.Store(true)
			asks.Go(func() { e.followHandOvers(asking, server) })
			e.count(server)
		case <-tick.C:
			if len(e.fatal) > 0 {
				continue // what follows may wait for a lock that is never given back
			}
			leader := leaderOf(server) != 0
			e.listen(leader)
			state.check(leader)
			e.fsyncs.sample(time.Now())
			if ticks++; state.begun && ticks%countEvery == 0 {
				e.count(server)
			}
		case <-e.leave:
			asks.Go(func() { e.handOver(asking, server, slog.LevelInfo) })
		case <-ctx.Done():
			e.close(server)
			return nil
		case err := <-e.fatal:
			if strings.Contains(err.Error(), metItsRemoval) {
				return e.gone(server)
			}
			return err // a goroutine of etcd is parked in its logger: Close would wait for it for ever
		case err := <-server.Err():
			if isStopping(server) { // its listeners notice first, and say less
				return e.gone(server)
			}
			e.close(server)
			return err
		case <-server.Server.StopNotify():
			return e.gone(server)
		}
	}
}

// isStopping tells whether the member stops by itself, which it does when the
// others say that it was removed, and only then (etcdserver/server.go:run).
func isStopping(server *embed.Etcd) bool {
	select {
	case <-server.Server.StoppingNotify():
		return true
	default:
		return false
	}
}

// metItsRemoval is what a goroutine of etcd dies of that looks for the member it
// belongs to, with the lock on all members held (api/membership/cluster.go:
// IsLocalMemberLearner; api/v3rpc/maintenance.go:Status calls it).
const metItsRemoval = "failed to find local ID in cluster members"

// gone closes what can be closed of a member that was removed, and says how to
// bring the controller back. Its data are void, so nothing is lost by what cannot.
func (e *etcd) gone(server *embed.Etcd) error {
	e.mu.Lock()
	e.server = nil // nobody is to wait for a lock of it
	e.mu.Unlock()
	closed := make(chan struct{})
	e.gateway.close()
	go func() {
		defer close(closed)
		server.Close()
	}()
	select {
	case <-closed:
	case <-e.fatal:
	case <-time.After(stopBridges):
	}
	os.Remove(socketPath(e.cfg))
	return WithHint(fmt.Errorf("this controller, %s, was removed from the cluster", e.cfg.Name),
		"to bring it back: kthwd member add NAME ADDRESS on another controller, then kthwd join with --replace-data here")
}

func (e *etcd) admission(ctx context.Context, server *embed.Etcd) error {
	if e.admit != nil {
		if err := e.admit(ctx, server); err != nil {
			return err
		}
	}
	e.awaitVote(ctx, server)
	return nil
}

// awaitVote returns when this member is a voter, or ctx ends. Clients are refused by
// a learner, so an API server must not be built on one.
func (e *etcd) awaitVote(ctx context.Context, server *embed.Etcd) {
	if !learns(server) {
		return
	}
	begun := time.Now()
	e.log.Info("this member is a learner: catching up with the others")
	for learns(server) && ctx.Err() == nil {
		sleep(ctx, readyPoll)
	}
	if ctx.Err() == nil {
		e.log.Info("caught up: this member votes now", "took", time.Since(begun).Round(time.Millisecond))
	}
}

// learns tells whether the member does not vote yet. EtcdServer.IsLearner panics
// for one that was removed.
func learns(server *embed.Etcd) bool {
	m := server.Server.Cluster().Member(server.Server.MemberID())
	return m != nil && m.IsLearner
}

// sharers is how many members must have the same shared files.
func (e *etcd) sharers() int {
	server := e.running()
	if server == nil {
		return 0
	}
	if learns(server) {
		return len(server.Server.Cluster().Members())
	}
	return voters(server)
}

func (e *etcd) count(server *embed.Etcd) {
	if e.counted != nil {
		e.counted(server)
	}
}

// quorumState turns "is there a leader" into lines and states, once per change.
type quorumState struct {
	etcd   *etcd
	report supervise.Reporter
	begun  bool // there was a quorum once
	lost   bool
	active int // members, this one included, when it last said that it waits for the first quorum
}

func (q *quorumState) check(leader bool) {
	if leader && q.begun && !q.lost {
		return
	}
	now := q.etcd.Quorum()
	switch {
	case !q.begun:
		if !leader && now.Note != "" && now.Members > 1 && now.Active != q.active {
			q.etcd.log.Info("waiting for a quorum: start the other controllers", q.seen(now)...)
			q.active = now.Active
		}
		q.report.Waiting(cmp.Or(now.Note, "waiting for the first write"))
	case !leader:
		if !q.lost {
			q.etcd.log.Warn("quorum lost", q.seen(now)...)
		}
		q.report.Waiting(now.Note)
		q.lost = true
	case q.lost:
		q.etcd.log.Info("quorum is back", "leader", now.Leader)
		q.report.Ready("")
		q.lost = false
	}
}

func (q *quorumState) seen(now status.Quorum) []any {
	attrs := []any{"members", now.Members, "reachable", now.Active, "needed", now.Needed}
	if now.Advice != "" {
		attrs = append(attrs, "hint", now.Advice)
	}
	return attrs
}

// close stops the member: clients first, then leadership is handed over, then
// the write-ahead log is closed (embed/etcd.go:Close).
func (e *etcd) close(server *embed.Etcd) {
	select {
	case <-server.Server.ReadyNotify():
		e.handOver(context.Background(), server, slog.LevelWarn) // if it leads again, or still
	default:
		// Close waits for the client listeners, which wait for a quorum that never
		// was, or for the end of the server (embed/serve.go:serve).
		server.Server.HardStop()
	}
	e.gateway.close()
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

// LinearizableRead returns nil once a quorum has confirmed this member's view.
func (e *etcd) LinearizableRead(ctx context.Context) error {
	server := e.running()
	if server == nil {
		return errors.New("etcd has not started")
	}
	return server.Server.LinearizableReadNotify(ctx)
}

// Quorum says how many members there are, how many are needed and how many can
// be reached from here.
func (e *etcd) Quorum() status.Quorum {
	server := e.running()
	if server == nil {
		return status.Quorum{Note: "waiting for etcd to start"}
	}
	self := server.Server.MemberID()
	active, q := e.reachable(server), status.Quorum{}
	for _, m := range server.Server.Cluster().Members() {
		if m.IsLearner {
			continue
		}
		q.Members++
		if m.ID == self || active[m.ID.String()] {
			q.Active++
		}
	}
	q.Needed = q.Members/2 + 1
	q.Warning = strings.Join(config.EvenWarning(q.Members), "")
	if leader := leaderOf(server); leader != 0 {
		q.Leader = leader.String()
		if m := server.Server.Cluster().Member(leader); m != nil && m.Name != "" {
			q.Leader = m.Name
		}
		if learns(server) {
			q.Note = "learner: catching up; it votes once it has"
		}
		return q
	}
	q.Note = fmt.Sprintf("waiting for etcd quorum (%d of %d)", q.Active, q.Members)
	if strangers := e.strangers.Load(); strangers != nil {
		q.Note += "; " + *strangers
	}
	if e.once.Load() && q.Members > 1 && q.Active < q.Needed {
		q.Advice = "if so many are lost for good that there will be no quorum again, stop kthwd here and run kthwd etcd recover"
	}
	return q
}

func voters(server *embed.Etcd) (n int) {
	for _, m := range server.Server.Cluster().Members() {
		if !m.IsLearner {
			n++
		}
	}
	return n
}

// Redundant tells whether the cluster has other voting members, and a leader.
func (e *etcd) Redundant() bool {
	server := e.running()
	return server != nil && voters(server) > 1 && leaderOf(server) != 0
}

// socketPath finds the unix socket among the client URLs.
func socketPath(cfg *embed.Config) string {
	for _, u := range cfg.ListenClientUrls {
		if u.Scheme == "unix" {
			return filepath.Join(u.Host, u.Path)
		}
	}
	return ""
}
