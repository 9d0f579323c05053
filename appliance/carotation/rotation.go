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
	"kthwd/appliance/carotation/castate"
	"kthwd/appliance/carotation/handshake"
	"kthwd/appliance/carotation/watch"
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
	CA     CA
	Name   string // this controller's
	Server string // https://HOST:PORT of its API server, as itself reaches it; of etcd's CA see Ports
	Layout pki.Layout
	Etcd   *etcd.Member
	Others *others.Others
	Watch  *watch.Watch
	Life   time.Duration // of the certificates that are signed anew; 0 for a year
	Log    *slog.Logger

	Cannot error // why the user's flags exclude a rotation; nil if they do not

	// Changed makes known that files of the data directory are others now, for a reason.
	Changed func(paths []string)

	// NewTerm makes kube-controller-manager and kube-scheduler end their terms, if they have one, and
	// begin another. Nil if they read nothing of the CA at the start of one.
	NewTerm func(ctx context.Context) error

	// Settle is how long the API server may go on with a certificate that was replaced, where it shows
	// that to nobody whom kthwd could ask.
	Settle time.Duration

	// Share tells the cluster the CAs of the file as it is: besides those that it knows, or
	// alone, and it forgets the others.
	Share func(ctx context.Context, client *clientv3.Client, path string, alone bool) error

	// Ports lists HOST:PORT of each port of etcd here that verifies certificates of etcd's CA. Nil for
	// another CA.
	Ports func() []string

	// Verifiers lists the servers that verify certificates of the CA: kubelets, extension API servers, or
	// the members of etcd.
	Verifiers func(ctx context.Context) ([]handshake.Verifier, error)

	// Unpublish takes a dropped CA out of the ConfigMap in which API servers publish theirs. Nil for none.
	Unpublish func(ctx context.Context, ca *x509.Certificate) error
}

// Rotation replaces a CA. Make one with New. Its methods may be called from any
// goroutine.
type Rotation struct {
	cfg     Config
	a       *authority
	metrics metrics
	started []string // IDs of the CAs with which etcd here starts; of etcd's CA only

	accepting sync.Mutex // one stage at a time

	runner *stages.Runner

	mu      sync.Mutex
	seen    castate.State // as it was last read here
	holder  string
	manager string // what kube-controller-manager has read at the start of its term; empty if that is not known yet
}

// New makes the Rotation of a controller.
func New(c Config) *Rotation {
	r := &Rotation{cfg: c, a: c.CA.authority()}
	r.metrics = r.a.metrics()
	if is, err := r.read(); err == nil && c.CA == Etcd {
		r.started = is.IDs()
	}
	r.runner = stages.NewRunner(stages.RunnerConfig{Kind: r.a.kind, Name: c.Name, Client: r.client, Log: c.Log})
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
func (r *Rotation) prepare(ctx context.Context, client *clientv3.Client) (castate.State, pki.CA, error) {
	none := pki.CA{}
	was, err := r.readState(ctx, client)
	switch {
	case err != nil:
		return was, none, err
	case was.Running():
		return was, none, advice.With(fmt.Errorf("a rotation has not ended: %s, stage %s since %s", was, was.Stage, was.Since.UTC().Format(time.RFC3339)), r.nextOf(was))
	}
	all, err := r.ask(ctx, request{Check: true}, askTime)
	if err == nil {
		err = stages.Complaints(all)
	}
	if err != nil {
		return was, none, err
	}
	here, err := r.read()
	if err != nil {
		return was, none, err
	}
	for _, c := range all {
		switch {
		case c.Signs == "":
			return was, none, advice.With(fmt.Errorf("%s: neither %s nor %s belongs to a CA in %s", c.Name, r.a.keyFile(), r.a.ownFile(), r.a.certFile()), "copy the files that belong together there")
		case c.Signs != all[0].Signs:
			return was, none, advice.With(fmt.Errorf("%s signs with the CA %s, and %s with %s", all[0].Name, castate.Short(all[0].Signs), c.Name, castate.Short(c.Signs)), "copy "+r.a.certFile()+" and "+r.a.keyFile()+" from the controller whose files are right, and restart kthwd")
		case c.Serves != c.Signs:
			return was, none, advice.With(fmt.Errorf("%s: its %s shows a certificate of another CA than that of its %s", c.Name, r.a.server(), r.a.keyFile()), "put the CA and the certificate that belong together back there, and restart kthwd")
		}
	}
	return castate.State{ID: rand.Text(), Began: time.Now().UTC(), Stage: castate.StageTrust, Origin: r.cfg.Name, Old: here.Signs(), Before: here.Signer.Raw, Revision: was.Revision}, here, nil
}

// read reads the CA of this controller.
func (r *Rotation) read() (pki.CA, error) { return pki.ReadCA(r.cfg.Layout, r.a.file) }

// nextKey is the file with the key that does not sign yet.
func (r *Rotation) nextKey() string { return r.cfg.Layout.NextCAKey(r.a.file) }

// nextOf is the command that a rotation in this state waits for.
func (r *Rotation) nextOf(s castate.State) string {
	switch s.Stage {
	case castate.StageDistribute, castate.StageRestart:
		return fmt.Sprintf("%s; %s goes on then, or %s takes it back", r.a.Bring(), r.a.Verb(VerbSign), r.a.Verb(VerbAbort))
	case castate.StageForget:
		return s.Again() + "; " + r.a.Verb(VerbResume) + " ends the rotation"
	case castate.StageWatch:
		if r.a.CA == Etcd {
			return r.a.Verb(VerbDrop) + " goes on"
		}
		return fmt.Sprintf("%s names the users who still come with a certificate of the old CA; %s ends the rotation", r.a.Verb(VerbStatus), r.a.Verb(VerbDrop))
	case castate.StageTrust:
		return fmt.Sprintf("%s goes on, %s takes it back", r.a.Verb(VerbResume), r.a.Verb(VerbAbort))
	}
	return r.a.Verb(VerbResume) + " goes on"
}

// act carries the rotation on in the background. begin returns the state with which it
// starts; an error of it, or of the right to act, is returned, and nothing has changed then.
func (r *Rotation) act(ctx context.Context, begin func(context.Context, *clientv3.Client, *stages.Hold) (castate.State, error)) error {
	return r.runner.Act(ctx, func(ctx context.Context, client *clientv3.Client, h *stages.Hold) (stages.Work, error) {
		s, err := begin(ctx, client, h)
		return stages.Work{What: s.String(), Stage: func(ctx context.Context, client *clientv3.Client, h *stages.Hold) error {
			return r.carryOn(ctx, client, h, s)
		}}, err
	})
}

// carryOn goes through the stages from that of s until a person has to decide, or the end.
func (r *Rotation) carryOn(ctx context.Context, client *clientv3.Client, h *stages.Hold, s castate.State) error {
	for {
		r.cfg.Log.Info("rotation of "+r.a.kind.What, "stage", string(s.Stage), "rotation", s.String())
		var err error
		next := castate.StageDone
		switch s.Stage {
		case castate.StageTrust:
			next, err = r.a.awaited(), r.trust(ctx, client, s)
		case castate.StageSign:
			next, err = castate.StageWatch, r.spread(ctx, s, r.keptKey())
		case castate.StageDistribute, castate.StageRestart, castate.StageWatch: // resumed, because a controller was set back
			return r.spread(ctx, s, r.keptKey())
		case castate.StageDrop:
			if err = r.drop(ctx, client, s); err == nil && r.a.CA == Etcd && r.stillAccepts(ctx, s) {
				next = castate.StageForget
			}
		case castate.StageForget:
			err = r.spread(ctx, s, nil)
		}
		if err != nil {
			return err
		}
		if err := r.enter(ctx, client, h, &s, next); err != nil {
			return err
		}
		if next == castate.StageDone {
			if err := stages.ForgetKey(r.nextKey()); err != nil {
				return err
			}
		}
		if s.Waits() || next == castate.StageDone {
			r.cfg.Log.Info("rotation of "+r.a.kind.What, "stage", string(next), "rotation", s.String())
			return nil
		}
	}
}

// enter records that a stage begins.
func (r *Rotation) enter(ctx context.Context, client *clientv3.Client, h *stages.Hold, s *castate.State, stage castate.Stage) error {
	s.Stage, s.Since, s.By = stage, time.Now().UTC(), r.cfg.Name
	return r.save(ctx, client, h, s)
}

// trust gives every controller the new CA and its key.
func (r *Rotation) trust(ctx context.Context, client *clientv3.Client, s castate.State) error {
	key := r.keptKey()
	if key == nil {
		return advice.With(errors.New("the key of the new CA is not on this controller"), "run "+r.a.Verb(VerbResume)+" on "+s.Origin+", or "+r.a.Verb(VerbAbort))
	}
	if err := r.spread(ctx, s, key); err != nil {
		return err
	}
	return r.share(ctx, client, false) // a controller that starts from now on has both
}

// keptKey is the key of the new CA as this controller has it; nil if it has none.
func (r *Rotation) keptKey() []byte {
	c, err := r.read()
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
func (r *Rotation) spread(ctx context.Context, s castate.State, key []byte) error {
	all, err := r.ask(ctx, request{Check: true}, askTime)
	if err == nil {
		err = stages.Complaints(all)
	}
	if err != nil {
		return err
	}
	if ca, err := s.CA(); err != nil || !pki.KeyOfCA(key, ca) {
		key = nil // each controller has its own copy, or says that it lacks it
	}
	if all, err = r.ask(ctx, request{ID: s.ID, Key: key}, takeTime); err != nil {
		return err
	}
	return r.a.notConfirmed(s, all)
}

// share tells the cluster the CAs in the file.
func (r *Rotation) share(ctx context.Context, client *clientv3.Client, alone bool) error {
	return r.cfg.Share(ctx, client, r.cfg.Layout.Cert(r.a.file), alone)
}

// drop makes every controller forget a CA, and then the readers of the ConfigMap in which API servers
// publish it.
func (r *Rotation) drop(ctx context.Context, client *clientv3.Client, s castate.State) error {
	if err := r.share(ctx, client, false); err != nil {
		return err
	}
	if err := r.spread(ctx, s, nil); err != nil {
		return err
	}
	if r.cfg.Unpublish != nil {
		ca, err := x509.ParseCertificate(s.DroppedCertificate())
		if err == nil {
			err = r.cfg.Unpublish(ctx, ca)
		}
		if err != nil {
			return err
		}
	}
	return r.share(ctx, client, true)
}

// stillAccepts reports whether an etcd has to be restarted before it refuses certificates of the dropped CA, or
// cannot be asked.
func (r *Rotation) stillAccepts(ctx context.Context, s castate.State) bool {
	s.Stage = castate.StageForget
	all, err := r.ask(ctx, request{}, askTime)
	return err != nil || r.a.notConfirmed(s, all) != nil
}

// mayDrop refuses to drop a CA with whose certificates somebody still comes, or which was not watched
// for long enough to know.
func (a *authority) mayDrop(s castate.State, all []Controller, now time.Time) error {
	hint := a.Verb(VerbStatus) + " names the users; --force drops it all the same, and their certificates are refused"
	for _, c := range all {
		switch {
		case c.Use == nil:
			return advice.With(fmt.Errorf("%s has not watched the old CA yet", c.Name), "try again in a few seconds")
		case c.Use.Count > 0 && now.Sub(c.Use.Last) < unused:
			return advice.With(fmt.Errorf("certificates of the old CA, %s, are still in use: %s saw %s at %s", castate.Short(s.Old), c.Name, c.Use.Newest(), c.Use.Last.UTC().Format(time.RFC3339)), hint)
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
	s, err := r.readState(ctx, client)
	if err != nil || s.NeedsNext() {
		return
	}
	r.runner.ForgetKept(r.nextKey(), kept)
}

// note keeps a state that was read.
func (r *Rotation) note(s castate.State) {
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
