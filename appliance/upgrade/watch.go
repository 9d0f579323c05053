package upgrade

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-semver/semver"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

// Kind is the kind of the finding about an upgrade.
const Kind = "upgrade"

const every = 2 * time.Second // pause between two looks at etcd

// Config is the input of New.
type Config struct {
	Name      string // of this controller
	Layout    pki.Layout
	Member    *etcd.Member
	APIServer []program.Arg    // its command line
	Now       etcdfiles.Record // the versions of this process
	Log       *slog.Logger
}

// Watch follows upgrades in a controller. Make one with New.
type Watch struct {
	cfg      Config
	base     etcdfiles.Ran // the versions from before the upgrade that this process is in
	upgrades bool          // base is older than Now
	emulated string        // minor of Kubernetes that the API server emulates; "" for its own
	users    bool          // because of the user's flag

	mu     sync.Mutex
	state  State
	oldest string // version of etcd that may run on the data; "" until it is known
	target string // of etcd's own downgrade; "" while none is enabled
	wrote  etcdfiles.Record
	failed string // why the record cannot be written; "" if it can
}

// New makes the watch of a start. It reads the member record as the run before has left it.
func New(cfg Config) *Watch {
	w := &Watch{cfg: cfg}
	before, _ := etcdfiles.ReadRecord(cfg.Layout) // Guard has read it, too
	w.base, w.upgrades = before.Base(cfg.Now)
	w.emulated = emulated(program.Value(cfg.APIServer, program.KeyEmulated))
	w.users = w.emulated != before.Emulates(cfg.Now)
	if w.emulated == etcdfiles.MinorOf(cfg.Now.Kubernetes) {
		w.emulated = ""
	}
	if w.emulated != "" && !w.users {
		cfg.Log.Warn("the upgrade of Kubernetes is not finished: the older minor is emulated, and may run again until then",
			"emulated", w.emulated, "is", cfg.Now.Kubernetes, "hint", "once all controllers are upgraded: kthwd upgrade finish")
	}
	return w
}

// emulated is the minor that a value of --emulated-version means for Kubernetes: 1.36, kube=1.36.
func emulated(value string) string {
	for _, v := range strings.Split(value, ",") {
		component, version, named := strings.Cut(v, "=")
		switch {
		case !named && v != "":
			return etcdfiles.MinorOf(v)
		case component == "kube": // component-base/compatibility: DefaultKubeComponent
			return etcdfiles.MinorOf(version)
		}
	}
	return ""
}

// holds reports whether what this process writes can be read by the older minor. The caller
// holds mu.
func (w *Watch) holds() bool {
	if !w.upgrades || w.state.Finished && w.state.leadsTo(w.cfg.Now) {
		return false
	}
	steps, known := etcdfiles.Steps(w.base.Kubernetes, w.cfg.Now.Kubernetes)
	if !known || steps == 0 { // only etcd is newer
		return known
	}
	ahead, known := etcdfiles.Steps(w.base.Kubernetes, w.emulated)
	return known && ahead <= 0
}

// Remember returns the versions for the record of the member.
func (w *Watch) Remember() etcdfiles.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.cfg.Now
	if w.oldest != "" {
		r.Etcd = w.oldest
	}
	switch {
	case w.holds() && (w.emulated != "" || r.Etcd != w.cfg.Now.Etcd):
		r = r.Emulating(w.base, w.cfg.Now)
	case r.Etcd != w.cfg.Now.Etcd:
		r.Last = etcdfiles.Ran{Kthwd: w.cfg.Now.Kthwd, Kubernetes: w.cfg.Now.Kubernetes, Etcd: w.cfg.Now.Etcd}
	}
	return r
}

// Wrote tells that the record of the member has been written.
func (w *Watch) Wrote(r etcdfiles.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrote, w.failed = r, ""
}

// NotWritten tells that the record of the member could not be written.
func (w *Watch) NotWritten(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != err.Error() {
		w.cfg.Log.Warn("the record of the member is not written, and is tried again", "file", w.cfg.Layout.Record(), "err", err)
	}
	w.failed = err.Error()
}

// Admit refuses to go on if the cluster is in the middle of an upgrade and this controller,
// which has not been part of it, emulates nothing: what its API server would store could not be
// read after the way back. It writes the record of the member, so that the next start is right.
func (w *Watch) Admit(ctx context.Context, server *embed.Etcd) error {
	client := v3client.New(server.Server)
	defer client.Close()
	s, err := ReadState(ctx, client, server.Server.Cluster().ID().String())
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.state = s
	w.mu.Unlock()
	steps, _ := etcdfiles.Steps(s.From.Kubernetes, w.cfg.Now.Kubernetes)
	if !s.open() || !s.leadsTo(w.cfg.Now) || steps < 1 || w.emulated != "" || w.users {
		return nil
	}
	r := etcdfiles.RecordOf(server.Server.Cluster().ID(), server.Server.MemberID())
	r.Members, r.Etcd = view.Voters(server), w.cfg.Now.Etcd
	if err := r.Emulating(s.From, w.cfg.Now).Write(w.cfg.Layout); err != nil {
		return err
	}
	return advice.With(fmt.Errorf("the cluster has not finished the upgrade %s, and its controllers emulate Kubernetes %s", s, s.fromKube()),
		"start kthwd again: it does so, too, from now on")
}

// Run keeps the state until ctx ends, which must be before the member is closed: it reads the
// member's database.
func (w *Watch) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := w.round(ctx); err != nil && ctx.Err() == nil {
			w.cfg.Log.Debug("the state of the upgrade is not known", "err", err)
		}
		supervise.Sleep(ctx, every)
	}
}

func (w *Watch) round(ctx context.Context) error {
	server := w.cfg.Member.Running()
	if server == nil || !w.cfg.Member.Defragmenting().IsZero() { // it has the lock of the database
		return nil
	}
	client := v3client.New(server.Server)
	defer client.Close()
	s, err := ReadState(ctx, client, server.Server.Cluster().ID().String(), clientv3.WithSerializable())
	if err != nil {
		return err
	}
	if w.begins(s) && view.Voters(server) > 0 {
		s = State{
			Cluster: server.Server.Cluster().ID().String(), From: w.base, By: w.cfg.Name, Since: time.Now().UTC().Truncate(time.Second),
			To: etcdfiles.Ran{Kthwd: w.cfg.Now.Kthwd, Kubernetes: w.cfg.Now.Kubernetes, Etcd: w.cfg.Now.Etcd}, revision: s.revision,
		}
		if err := s.save(ctx, client); err != nil && !errors.Is(err, errChanged) {
			return err
		}
	}
	if ctx.Err() == nil {
		w.note(s, server)
	}
	return nil
}

// begins reports whether this process is the first of an upgrade.
func (w *Watch) begins(s State) bool {
	if !w.upgrades {
		return false
	}
	kube, _ := etcdfiles.Steps(s.To.Kubernetes, w.cfg.Now.Kubernetes)
	store, _ := etcdfiles.Steps(s.To.Etcd, w.cfg.Now.Etcd)
	return !s.there() || kube > 0 || store > 0
}

// note keeps what is known, and logs what has changed.
func (w *Watch) note(s State, server *embed.Etcd) {
	storage, open := storageVersion(server.Server)
	if !open {
		return
	}
	downgrade := server.Server.DowngradeInfo()
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.Finished && !w.state.Finished && w.upgrades && s.leadsTo(w.cfg.Now) {
		w.cfg.Log.Info("the upgrade is finished: the next start emulates nothing", "upgrade", s.String(), "by", s.By)
	}
	w.state, w.oldest, w.target = s, w.cfg.Now.Etcd, ""
	if downgrade != nil && downgrade.Enabled {
		w.target = downgrade.TargetVersion
	}
	// A lone member raises the version of its storage on its own, moments after its start.
	lone := view.Voters(server) < 2 && w.target == ""
	if storage == nil || lone || s.Onward && s.leadsTo(w.cfg.Now) {
		return
	}
	if steps, known := etcdfiles.Steps(storage.String(), w.cfg.Now.Etcd); known && steps == 1 {
		w.oldest = storage.String()
	}
}

// storageVersion is the format of the member's database, nil if etcd does not know it. It is not
// open when etcd closes it at this moment: of its own accord after a removal or a fatal error, or
// because the start is refused. A read then meets a transaction that is nil
// (server/storage/backend/read_tx.go: UnsafeRange).
func storageVersion(server interface{ StorageVersion() *semver.Version }) (v *semver.Version, open bool) {
	defer func() {
		switch v := recover().(type) {
		case nil, runtime.Error:
		default:
			panic(v)
		}
	}()
	return server.StorageVersion(), true
}

// Report is what the verbs need to know of this controller.
func (w *Watch) Report() *status.Upgrade {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &status.Upgrade{Emulated: w.emulated, Next: w.next(), Kthwd: w.wrote.Kthwd, Kube: w.wrote.Kubernetes, Etcd: w.wrote.Etcd, Unwritten: w.failed}
}

// next is the minor that the next start emulates. The caller holds mu.
func (w *Watch) next() string {
	if w.users {
		return w.emulated
	}
	return w.wrote.Emulates(w.cfg.Now)
}

// Findings implements the observers of package appliance.
func (w *Watch) Findings() []status.Finding {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := status.Finding{Health: status.Healthy, Kind: Kind, Since: w.state.Since, Do: "kthwd upgrade status --data-dir=" + text.ShellWord(w.cfg.Layout.Dir)}
	switch {
	case w.target != "":
		f.Since = time.Time{}
		f.Text = fmt.Sprintf("etcd is on the way back to %s: the upgrade is being taken back", etcdfiles.MinorOf(w.target))
	case w.state.open() && w.upgrades && w.state.leadsTo(w.cfg.Now):
		f.Text = fmt.Sprintf("the upgrade %s is not finished", w.state)
		if w.emulated != "" {
			f.Text += ": Kubernetes " + w.emulated + " is emulated"
		}
	case w.wrote.Kubernetes != "" && w.emulated != w.next():
		f.Text = fmt.Sprintf("the upgrade %s is finished, and this controller emulates Kubernetes %s until it is restarted", w.state, w.emulated)
	default:
		return nil
	}
	if w.failed != "" {
		f.Health, f.Text = status.Degraded, f.Text+"; member.json cannot be written: "+w.failed
	}
	return []status.Finding{f}
}
