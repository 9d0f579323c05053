package carotation

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcd"
	"kthwd/appliance/others"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
)

const (
	// unused is how long nobody may have come with a certificate of the old CA before it is dropped
	// without force.
	unused = 24 * time.Hour

	// followed is how long a client that reads its CAs from a file may keep the old ones: client-go
	// looks every 5 minutes (transport/ca_rotation.go), kthwd every 5 seconds before that.
	followed = 6 * time.Minute
)

// Config describes a Rotation.
type Config struct {
	Name   string // this controller's
	Server string // https://HOST:PORT of its API server, as itself reaches it
	Layout pki.Layout
	Etcd   *etcd.Member
	Others *others.Others
	Watch  *Watch
	Life   time.Duration // of the certificates that are signed anew; 0 for a year
	Log    *slog.Logger

	Cannot error // why the user's flags exclude a rotation; nil if they do not

	// Changed makes known that files of the data directory are others now, for a reason.
	Changed func(paths []string)

	// NewTerm makes kube-controller-manager and kube-scheduler end their terms, if they have one, and
	// begin another.
	NewTerm func(ctx context.Context) error

	// Share tells the cluster the CAs of the file as it is: besides those that it knows, or
	// alone, and it forgets the others.
	Share func(ctx context.Context, client *clientv3.Client, path string, alone bool) error

	// Kubelets lists the nodes with the HOST:PORT of their kubelets.
	Kubelets func(ctx context.Context) ([]Kubelet, error)
}

// Rotation replaces the cluster's CA. Make one with New. Its methods may be called from any
// goroutine.
type Rotation struct {
	cfg Config

	accepting sync.Mutex // one stage at a time

	runner *stages.Runner

	mu      sync.Mutex
	seen    State // as it was last read here
	holder  string
	manager string // what kube-controller-manager has read at the start of its term; empty if that is not known yet
}

// New makes the Rotation of a controller.
func New(c Config) *Rotation {
	r := &Rotation{cfg: c}
	r.runner = stages.NewRunner(stages.RunnerConfig{Kind: kind, Name: c.Name, Client: r.client, Log: c.Log})
	return r
}

func (r *Rotation) client() (*clientv3.Client, error) {
	server := r.cfg.Etcd.Running()
	if server == nil {
		return nil, advice.With(errors.New("etcd has not started yet"), "kthwd status says what it waits for")
	}
	return v3client.New(server.Server), nil
}

// prepare checks everything that would stop a rotation, and changes nothing.
func (r *Rotation) prepare(ctx context.Context, client *clientv3.Client) (State, pki.ClusterCA, error) {
	none := pki.ClusterCA{}
	was, err := readState(ctx, r.cfg.Layout, client)
	switch {
	case err != nil:
		return was, none, err
	case was.Running():
		return was, none, advice.With(fmt.Errorf("a rotation has not ended: %s, stage %s since %s", was, was.Stage, was.Since.UTC().Format(time.RFC3339)), nextOf(was))
	}
	all, err := r.ask(ctx, request{Check: true}, askTime)
	if err == nil {
		err = stages.Complaints(all)
	}
	if err != nil {
		return was, none, err
	}
	here, err := pki.ReadClusterCA(r.cfg.Layout)
	if err != nil {
		return was, none, err
	}
	for _, c := range all {
		switch {
		case c.Signs == "":
			return was, none, advice.With(fmt.Errorf("%s: neither ca-key.pem nor kubernetes.pem belongs to a CA in ca.pem", c.Name), "copy the files that belong together there")
		case c.Signs != all[0].Signs:
			return was, none, advice.With(fmt.Errorf("%s signs with the CA %s, and %s with %s", all[0].Name, Short(all[0].Signs), c.Name, Short(c.Signs)), "copy ca.pem and ca-key.pem from the controller whose files are right, and restart kthwd")
		case c.Serves != c.Signs:
			return was, none, advice.With(fmt.Errorf("%s: its API server shows a certificate of another CA than that of its ca-key.pem", c.Name), "kthwd pki renew kubernetes there, or put the pair that belongs together back")
		}
	}
	return State{ID: rand.Text(), Began: time.Now().UTC(), Stage: StageTrust, Origin: r.cfg.Name, Old: here.Signs(), Before: here.Signer.Raw, revision: was.revision}, here, nil
}

// nextOf is the command that a rotation in this state waits for.
func nextOf(s State) string {
	switch s.Stage {
	case StageDistribute:
		return "copy ca.pem to every worker, balancer and user; then kthwd pki ca sign goes on, or kthwd pki ca abort takes it back"
	case StageWatch:
		return "kthwd pki ca status names the users who still come with a certificate of the old CA; kthwd pki ca drop ends the rotation"
	case StageTrust:
		return "kthwd pki ca resume goes on, kthwd pki ca abort takes it back"
	}
	return "kthwd pki ca resume goes on"
}

// act carries the rotation on in the background. begin returns the state with which it
// starts; an error of it, or of the right to act, is returned, and nothing has changed then.
func (r *Rotation) act(ctx context.Context, begin func(context.Context, *clientv3.Client, *stages.Hold) (State, error)) error {
	return r.runner.Act(ctx, func(ctx context.Context, client *clientv3.Client, h *stages.Hold) (stages.Work, error) {
		s, err := begin(ctx, client, h)
		return stages.Work{What: s.String(), Stage: func(ctx context.Context, client *clientv3.Client, h *stages.Hold) error {
			return r.carryOn(ctx, client, h, s)
		}}, err
	})
}

// carryOn goes through the stages from that of s until a person has to decide, or the end.
func (r *Rotation) carryOn(ctx context.Context, client *clientv3.Client, h *stages.Hold, s State) error {
	for {
		r.cfg.Log.Info("rotation of the cluster's CA", "stage", string(s.Stage), "rotation", s.String())
		var err error
		next := StageDone
		switch s.Stage {
		case StageTrust:
			next, err = StageDistribute, r.trust(ctx, client, s)
		case StageSign:
			next, err = StageWatch, r.spread(ctx, s, r.keptKey())
		case StageDistribute, StageWatch: // resumed, because a controller was set back
			return r.spread(ctx, s, r.keptKey())
		case StageDrop:
			err = r.drop(ctx, client, s)
		}
		if err != nil {
			return err
		}
		if err := r.enter(ctx, client, h, &s, next); err != nil {
			return err
		}
		if next == StageDone {
			if err := stages.ForgetKey(r.cfg.Layout.NextCAKey()); err != nil {
				return err
			}
		}
		if s.waits() || next == StageDone {
			r.cfg.Log.Info("rotation of the cluster's CA", "stage", string(next), "rotation", s.String())
			return nil
		}
	}
}

// enter records that a stage begins.
func (r *Rotation) enter(ctx context.Context, client *clientv3.Client, h *stages.Hold, s *State, stage Stage) error {
	s.Stage, s.Since, s.By = stage, time.Now().UTC(), r.cfg.Name
	return s.save(ctx, r.cfg.Layout, client, h)
}

// trust gives every controller the new CA and its key.
func (r *Rotation) trust(ctx context.Context, client *clientv3.Client, s State) error {
	key := r.keptKey()
	if key == nil {
		return advice.With(errors.New("the key of the new CA is not on this controller"), "run kthwd pki ca resume on "+s.Origin+", or kthwd pki ca abort")
	}
	if err := r.spread(ctx, s, key); err != nil {
		return err
	}
	return r.cfg.Share(ctx, client, r.cfg.Layout.CA(), false) // a controller that starts from now on has both
}

// keptKey is the key of the new CA as this controller has it; nil if it has none.
func (r *Rotation) keptKey() []byte {
	c, err := pki.ReadClusterCA(r.cfg.Layout)
	if err != nil {
		return nil
	}
	if c.Next != nil {
		return c.Next
	}
	return c.Key
}

// spread makes every controller take the rotation's stage, with the new key, for those that lack
// it. One that does not answer is named before any other changes.
func (r *Rotation) spread(ctx context.Context, s State, key []byte) error {
	all, err := r.ask(ctx, request{Check: true}, askTime)
	if err == nil {
		err = stages.Complaints(all)
	}
	if err != nil {
		return err
	}
	if ca, err := s.ca(); err != nil || !pki.KeyOfCA(key, ca) {
		key = nil // each controller has its own copy, or says that it lacks it
	}
	if all, err = r.ask(ctx, request{ID: s.ID, Key: key}, takeTime); err != nil {
		return err
	}
	return notConfirmed(s, all)
}

// drop makes every controller forget a CA.
func (r *Rotation) drop(ctx context.Context, client *clientv3.Client, s State) error {
	if err := r.cfg.Share(ctx, client, r.cfg.Layout.CA(), false); err != nil {
		return err
	}
	if err := r.spread(ctx, s, nil); err != nil {
		return err
	}
	return r.cfg.Share(ctx, client, r.cfg.Layout.CA(), true)
}

// mayDrop refuses to drop a CA with whose certificates somebody still comes, or which was not watched
// for long enough to know.
func mayDrop(s State, all []Controller, now time.Time) error {
	const hint = "kthwd pki ca status names the users; --force drops it all the same, and their certificates are refused"
	for _, c := range all {
		switch {
		case c.Use == nil:
			return advice.With(fmt.Errorf("%s has not watched the old CA yet", c.Name), "try again in a few seconds")
		case c.Use.Count > 0 && now.Sub(c.Use.Last) < unused:
			return advice.With(fmt.Errorf("certificates of the old CA, %s, are still in use: %s saw %s at %s", Short(s.Old), c.Name, c.Use.Newest(), c.Use.Last.UTC().Format(time.RFC3339)), hint)
		case now.Sub(c.Use.Since) < unused:
			return advice.With(fmt.Errorf("%s has watched the old CA since %s only: a day without a certificate of it shows that nobody needs it", c.Name, c.Use.Since.UTC().Format(time.RFC3339)), hint)
		}
	}
	return nil
}

// tidy removes the key that is kept for a rotation which another controller has carried on, or
// which has never begun.
func (r *Rotation) tidy(ctx context.Context, client *clientv3.Client, kept fs.FileInfo) {
	// This one asks the quorum, which may know more than this member.
	s, err := readState(ctx, r.cfg.Layout, client)
	if err != nil || s.needsNext() {
		return
	}
	r.runner.ForgetKept(r.cfg.Layout.NextCAKey(), kept)
}

// needsNext reports whether a controller may have the new key beside the old one.
func (s State) needsNext() bool {
	return s.Running() && (s.Stage == StageTrust || s.Stage == StageDistribute || s.Stage == StageSign)
}

// note keeps a state that was read.
func (r *Rotation) note(s State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = s
}

// ofRotation are the two CAs of the rotation that was last seen.
func (r *Rotation) ofRotation() (cas []*x509.Certificate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, der := range [][]byte{r.seen.Before, r.seen.Certificate} {
		if ca, err := x509.ParseCertificate(der); err == nil {
			cas = append(cas, ca)
		}
	}
	return cas
}
