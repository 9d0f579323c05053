package tokenrotation

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcd"
	"kthwd/appliance/others"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
	"kthwd/appliance/tokenkeys"
)

// unused is how long nobody may have used the old key before it is dropped without force.
const unused = 24 * time.Hour

// Config describes a Rotation.
type Config struct {
	Name   string // this controller's
	Layout pki.Layout
	Etcd   *etcd.Member
	Keys   *Keys
	Others *others.Others
	Tokens *tokenkeys.Watch
	Log    *slog.Logger

	Cannot error         // why the user's flags exclude a rotation; nil if they do not
	Life   time.Duration // the longest life of a token that is asked for; 0 for no limit

	// NewTerm makes kube-controller-manager end its term, if it has one, and begin another.
	NewTerm func(ctx context.Context) error

	// Reseal gives what is sealed in etcd a seal of the key that signs.
	Reseal func(ctx context.Context, client *clientv3.Client) error

	// Share tells the cluster the keys of the file as it is: besides those that it knows,
	// or alone, and it forgets the others.
	Share func(ctx context.Context, client *clientv3.Client, path string, alone bool) error
}

// Rotation rotates the key pair of service account tokens. Make one with New. Its methods may be
// called from any goroutine.
type Rotation struct {
	cfg Config

	accepting sync.Mutex // one stage at a time

	runner *stages.Runner

	kept keptUse // used by follow only

	mu      sync.Mutex
	seen    State // as Run has last read it
	holder  string
	manager string // ID of the key with which kube-controller-manager signs; empty if not known yet
}

// New makes the Rotation of a controller.
func New(c Config) *Rotation {
	r := &Rotation{cfg: c}
	r.runner = stages.NewRunner(stages.RunnerConfig{Kind: kind, Name: c.Name, Client: r.client, Log: c.Log})
	return r
}

func (r *Rotation) cert() string { return r.cfg.Layout.Cert(pki.NameServiceAccount) }

func (r *Rotation) client() (*clientv3.Client, error) {
	server := r.cfg.Etcd.Running()
	if server == nil {
		return nil, advice.With(errors.New("etcd has not started yet"), "kthwd status says what it waits for")
	}
	return v3client.New(server.Server), nil
}

// prepare checks everything that would stop a rotation, and changes nothing.
func (r *Rotation) prepare(ctx context.Context, client *clientv3.Client, wait time.Duration) (State, error) {
	if r.cfg.Cannot != nil {
		return State{}, r.cfg.Cannot
	}
	if wait < 0 {
		return State{}, advice.Usage(errors.New("--wait is less than nothing"))
	}
	was, err := readState(ctx, r.cfg.Layout, client)
	switch {
	case err != nil:
		return was, err
	case was.Running():
		return was, advice.With(fmt.Errorf("a rotation has not ended: %s, stage %s since %s", was, was.Stage, was.Since.UTC().Format(time.RFC3339)), nextOf(was))
	}
	all, err := r.ask(ctx, request{Check: true}, askTime)
	if err != nil {
		return was, err
	}
	if err := stages.Complaints(all); err != nil {
		return was, err
	}
	own := all[0]
	for _, c := range all {
		switch {
		case len(c.Files) == 0 || c.Files[0] != c.Signs:
			return was, advice.With(fmt.Errorf("%s: its API server signs with another key than that in service-account-key.pem", c.Name), "put the file from before back, or restart kthwd on "+c.Name)
		case c.Signs != own.Signs:
			return was, advice.With(fmt.Errorf("%s signs tokens with %s, and %s with %s", own.Name, Short(own.Signs), c.Name, Short(c.Signs)), "copy service-account.pem and its key from the controller whose files are right, and restart kthwd")
		}
	}
	now := time.Now().UTC()
	return State{ID: rand.Text(), Began: now, Signs: now.Add(wait), Stage: StagePublish, Old: own.Signs, revision: was.revision}, nil
}

// nextOf is the command that a rotation in this state waits for.
func nextOf(s State) string {
	if s.waits() {
		return "kthwd pki service-account status names the accounts that still use the old key; kthwd pki service-account drop ends the rotation"
	}
	return "kthwd pki service-account resume ends it" + map[bool]string{true: ", kthwd pki service-account abort takes it back"}[s.Stage == StagePublish]
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
		r.cfg.Log.Info("rotation of the service account key", "stage", string(s.Stage), "rotation", s.String())
		var err error
		next := StageDone
		switch s.Stage {
		case StagePublish:
			next, err = StageSign, r.publish(ctx, s)
		case StageSign:
			key, _ := r.newKey(s) // every controller has it, unless its files were put back
			next, err = StageWatch, r.spread(ctx, s, key)
		case StageWatch: // resumed, because a controller was set back
			key, _ := r.newKey(s)
			return r.spread(ctx, s, key)
		case StageDrop:
			err = r.drop(ctx, client, s)
		}
		if err != nil {
			return err
		}
		if err := r.enter(ctx, client, h, &s, next); err != nil {
			return err
		}
		if next == StageSign || next == StageDone {
			if err := stages.ForgetKey(r.next()); err != nil {
				return err
			}
		}
		if next == StageDone {
			// Each controller removes its own record; this is for those that do not run.
			if _, err := client.Delete(ctx, usesPrefix, clientv3.WithPrefix()); err != nil {
				r.cfg.Log.Debug("the records of accounts stay in etcd", "err", err)
			}
		}
		if next == StageWatch || next == StageDone {
			r.cfg.Log.Info("rotation of the service account key", "stage", string(next), "rotation", s.String())
			return nil
		}
	}
}

// enter records that a stage begins.
func (r *Rotation) enter(ctx context.Context, client *clientv3.Client, h *stages.Hold, s *State, stage Stage) error {
	s.Stage, s.Since, s.By = stage, time.Now().UTC(), r.cfg.Name
	return s.save(ctx, r.cfg.Layout, client, h)
}

// publish gives every controller the new key, waits until those who verify tokens elsewhere can know
// it, and looks whether all controllers still have it.
func (r *Rotation) publish(ctx context.Context, s State) error {
	key, err := r.newKey(s)
	if err != nil {
		return err
	}
	if err := r.spread(ctx, s, key); err != nil {
		return err
	}
	if wait := time.Until(s.Signs); wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		return r.spread(ctx, s, key)
	}
	return nil
}

// newKey is the private key of a rotation, from this controller's files.
func (r *Rotation) newKey(s State) ([]byte, error) {
	f, err := pki.ReadTokenFiles(r.cfg.Layout)
	if err != nil {
		return nil, err
	}
	if key := f.PrivateKey(s.New); key != nil {
		return key, nil
	}
	kept, err := os.ReadFile(r.next())
	if err == nil {
		if key := (pki.TokenFiles{Key: kept}).PrivateKey(s.New); key != nil {
			return key, nil
		}
	}
	return nil, advice.With(fmt.Errorf("the new key, %s, is not on this controller: %s has begun the rotation", Short(s.New), s.By),
		"run kthwd pki service-account resume there; if that controller is lost, kthwd pki service-account abort takes the rotation back")
}

// spread makes every controller take the stage, and returns when each has. key is the new key, for
// those that lack it. One that does not answer is named before any other changes.
func (r *Rotation) spread(ctx context.Context, s State, key []byte) error {
	all, err := r.ask(ctx, request{Check: true}, askTime)
	if err != nil {
		return err
	}
	if err := stages.Complaints(all); err != nil {
		return err
	}
	if all, err = r.ask(ctx, request{ID: s.ID, Key: key}, takeTime); err != nil {
		return err
	}
	return notConfirmed(s, all)
}

// drop makes every controller forget a key. Whatever it has sealed has another seal before.
func (r *Rotation) drop(ctx context.Context, client *clientv3.Client, s State) error {
	all, err := r.ask(ctx, request{Check: true}, askTime)
	if err != nil {
		return err
	}
	if err := stages.Complaints(all); err != nil {
		return err
	}
	if !s.Back {
		for _, c := range all {
			if c.Signs != s.New || c.Manager != s.New {
				return advice.With(fmt.Errorf("%s signs with %s: it was set back", c.Name, Short(c.Signs)), "copy service-account.pem and its key from another controller there, restart kthwd, then kthwd pki service-account resume")
			}
		}
		if err := r.cfg.Reseal(ctx, client); err != nil {
			return err
		}
	}
	// A controller that starts from now on has both keys, or the one that stays.
	if err := r.cfg.Share(ctx, client, r.cert(), false); err != nil {
		return err
	}
	if err := r.spread(ctx, s, nil); err != nil {
		return err
	}
	return r.cfg.Share(ctx, client, r.cert(), true)
}

// mayDrop refuses to drop a key with which somebody still comes, or which was not watched for
// long enough to know.
func mayDrop(s State, all []Controller, now time.Time) error {
	const hint = "kthwd pki service-account status names the accounts that use it; --force drops it all the same, and their tokens are refused"
	for _, c := range all {
		switch {
		case c.Use == nil:
			return advice.With(fmt.Errorf("%s has not watched the old key yet", c.Name), "try again in a few seconds")
		case c.Use.Count > 0 && now.Sub(c.Use.Last) < unused:
			return advice.With(fmt.Errorf("the old key, %s, is still in use: %s saw %s at %s", Short(s.Old), c.Name, c.Use.Newest(), c.Use.Last.UTC().Format(time.RFC3339)), hint)
		case now.Sub(c.Use.Since) < unused:
			return advice.With(fmt.Errorf("%s has watched the old key since %s only: a day without a token of it shows that nobody needs it", c.Name, c.Use.Since.UTC().Format(time.RFC3339)), hint)
		}
	}
	return nil
}

// next is where the controller that began keeps the new key until every controller has it.
func (r *Rotation) next() string { return r.cfg.Layout.NextServiceAccountKey() }

// tidy removes the key that is kept for a rotation which another controller has carried on, or
// which has never begun.
func (r *Rotation) tidy(ctx context.Context, client *clientv3.Client, kept fs.FileInfo) {
	// This one asks the quorum, which may know more than this member.
	s, err := readState(ctx, r.cfg.Layout, client)
	if err != nil || s.Running() && s.Stage == StagePublish {
		return
	}
	r.runner.ForgetKept(r.next(), kept)
}
