package tokenrotation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
	"kthwd/appliance/tokenkeys"
)

// PeerPath is where a controller answers the one that carries a rotation on.
const PeerPath = "/kthwd/service-account"

const (
	askTime  = 10 * time.Second // bounds a question
	takeTime = 3 * time.Minute  // bounds a stage: kube-controller-manager's term ends and begins in it
)

// request is a question to a controller. Without an ID it only asks for the state.
type request struct {
	Check bool   `json:"check,omitempty"` // whether the files could be replaced
	ID    string `json:"id,omitempty"`    // of the rotation whose stage the controller is to take
	Key   []byte `json:"key,omitempty"`   // the new private key, PEM; empty where nobody needs it
	Watch string `json:"watch,omitempty"` // ID of the key whose use is asked for
}

// Controller is the answer.
type Controller struct {
	stages.Answer
	Accepts []string       `json:"accepts,omitempty"` // IDs of the keys whose tokens the API server accepts
	Signs   string         `json:"signs,omitempty"`   // ID of the key with which the API server signs
	Files   []string       `json:"files,omitempty"`   // IDs of the private keys in the file; the first one signs
	Manager string         `json:"manager,omitempty"` // ID of the key with which kube-controller-manager signs
	Use     *tokenkeys.Use `json:"use,omitempty"`     // of the key asked for
}

// Peer answers the controller that carries a rotation on. Give it to others.Handle.
func (r *Rotation) Peer() http.Handler { return stages.Peer(r.answer) }

// answer does what another controller, or this one, asks for.
func (r *Rotation) answer(ctx context.Context, in request) Controller {
	c := Controller{Answer: stages.Answer{Name: r.cfg.Name}}
	err := r.cfg.Cannot
	if err == nil && in.Check {
		if err = pki.TokenFilesReplaceable(r.cfg.Layout); err != nil {
			err = advice.With(err, "make its directory writable for kthwd's user")
		}
	}
	if err == nil && in.ID != "" {
		err = r.accept(ctx, in)
	}
	if f, failed := pki.ReadTokenFiles(r.cfg.Layout); failed == nil {
		c.Files = f.Signing()
	}
	if set, failed := r.cfg.Keys.InUse(); failed == nil {
		c.Accepts, c.Signs, c.Manager = set.IDs(), set.SignerID, r.managerKey(set.SignerID)
	} else if err == nil {
		err = failed
	}
	if in.Watch != "" && r.cfg.Tokens != nil {
		c.Use = r.cfg.Tokens.UseOf(in.Watch)
	}
	if err != nil {
		c.Failed(err)
	}
	return c
}

// managerKey is the key with which kube-controller-manager signs: that of this process's start, or
// of its last term.
func (r *Rotation) managerKey(now string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.manager == "" {
		r.manager = now
	}
	return r.manager
}

// accept gives this controller's files the form of the rotation's stage, and lets its programs use
// them.
func (r *Rotation) accept(ctx context.Context, in request) error {
	r.accepting.Lock()
	defer r.accepting.Unlock()
	server := r.cfg.Etcd.Running()
	if server == nil {
		return errors.New("etcd has not started")
	}
	client := v3client.New(server.Server)
	defer client.Close()
	s, err := readState(ctx, r.cfg.Layout, client)
	switch {
	case err != nil:
		return err
	case !s.Running() || s.ID != in.ID:
		return errors.New("the stage is not that of a rotation under way")
	}
	set, err := r.cfg.Keys.InUse()
	if err != nil {
		return err
	}
	r.managerKey(set.SignerID)
	f, err := pki.ReadTokenFiles(r.cfg.Layout)
	if err != nil {
		return err
	}
	next, err := form(s, f, in.Key)
	if err != nil {
		return err
	}
	if err := next.Write(r.cfg.Layout); err != nil {
		return err
	}
	if err := r.cfg.Keys.Load(); err != nil {
		return err
	}
	return r.manage(ctx)
}

// manage lets kube-controller-manager begin a new term if it signs with another key than the API
// server: it reads its key at the start of a term only.
func (r *Rotation) manage(ctx context.Context) error {
	set := r.cfg.Keys.Current()
	if r.managerKey("") == set.SignerID {
		return nil
	}
	if err := r.cfg.NewTerm(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.manager = set.SignerID
	return nil
}

// form returns the files that a controller has in a stage. Each form follows from every earlier
// one, so that a controller that has missed a stage can take part again.
func form(s State, f pki.TokenFiles, key []byte) (pki.TokenFiles, error) {
	if s.Stage == StageDrop && s.Back {
		if !slices.Contains(f.Signing(), s.Old) {
			return f, lacks(s.Old)
		}
		return f.SignedBy(s.Old).Without(s.New), nil
	}
	if s.Stage != StageDrop && (!slices.Contains(f.Signing(), s.Old) || !slices.Contains(f.Accepted(), s.Old)) {
		return f, lacks(s.Old)
	}
	if here := f.PrivateKey(s.New); here != nil {
		key = here
	}
	if key == nil {
		return f, lacks(s.New)
	}
	f, err := f.With(key)
	if err != nil {
		return f, err
	}
	if !slices.Contains(f.Signing(), s.New) || !slices.Contains(f.Accepted(), s.New) {
		return f, errors.New("the new key is not that of the rotation")
	}
	switch s.Stage {
	case StageSign, StageWatch:
		f = f.SignedBy(s.New)
	case StageDrop:
		f = f.SignedBy(s.New).Without(s.Old)
	}
	return f, nil
}

func lacks(id string) error {
	return advice.With(fmt.Errorf("its service-account.pem or service-account-key.pem lacks the key %s", Short(id)),
		"copy both files from another controller, and restart kthwd there; then kthwd pki service-account resume")
}

// confirmed says what keeps a controller from having taken a stage; nil if it has.
func confirmed(s State, c Controller) error {
	signs, accepts, not := s.New, []string{s.Old, s.New}, ""
	switch {
	case s.Stage == StagePublish:
		signs = s.Old
	case s.Stage == StageDrop && s.Back:
		signs, accepts, not = s.Old, []string{s.Old}, s.New
	case s.Stage == StageDrop:
		accepts, not = []string{s.New}, s.Old
	}
	switch {
	case c.Signs != signs || len(c.Files) == 0 || c.Files[0] != signs:
		return fmt.Errorf("its API server signs with %s, and not with %s", Short(c.Signs), Short(signs))
	case c.Manager != signs:
		return errors.New("its kube-controller-manager signs with another key than its API server")
	case slices.ContainsFunc(accepts, func(id string) bool { return !slices.Contains(c.Accepts, id) }):
		return fmt.Errorf("its API server accepts tokens of %s only", shorts(c.Accepts))
	case s.Stage == StagePublish && !slices.Contains(c.Files, s.New):
		return errors.New("it has not kept the new key")
	case not != "" && slices.Contains(c.Accepts, not):
		return advice.With(fmt.Errorf("its API server still accepts tokens of %s: the key is in another file of --service-account-key-file", Short(not)), "take it out of that file, restart kthwd there, then kthwd pki service-account resume")
	case not != "" && slices.Contains(c.Files, not):
		return errors.New("it still has the key that is dropped")
	}
	return nil
}

func shorts(ids []string) string {
	var all []string
	for _, id := range ids {
		all = append(all, Short(id))
	}
	return strings.Join(all, ", ")
}

// ask asks all controllers, this one first.
func (r *Rotation) ask(ctx context.Context, in request, within time.Duration) ([]Controller, error) {
	return stages.Ask(ctx, r.cfg.Others, PeerPath, in, within, func() Controller { return r.answer(ctx, in) })
}

// notConfirmed is an error that names each controller that has not taken a stage; nil without one.
func notConfirmed(s State, all []Controller) error {
	for i, c := range all {
		if err := confirmed(s, c); c.Error == "" && err != nil {
			all[i].Failed(err)
		}
	}
	return stages.Complaints(all)
}
