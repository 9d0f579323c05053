package tokenrotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
)

// kind names the rotation. kube-apiserver's keys in etcd are below /registry.
var kind = stages.Kind{What: "the service account key", Command: "kthwd pki service-account", Prefix: "/kthwd/service-account/"}

// Stage is a step of a rotation.
type Stage string

// The stages, in their order.
const (
	StagePublish Stage = "publish" // all controllers accept tokens of the new key
	StageSign    Stage = "sign"    // all controllers sign with it
	StageWatch   Stage = "watch"   // tokens of the old key are accepted and counted, until it is dropped
	StageDrop    Stage = "drop"    // all controllers forget the old key
	StageDone    Stage = "done"
)

var order = []Stage{StagePublish, StageSign, StageWatch, StageDrop}

// Number counts the stages from 1.
func (s Stage) Number() int { return slices.Index(order, s) + 1 }

// Of is the number of stages.
const Of = 4

// State is a rotation, as etcd has it. It holds no key, only the IDs of keys.
type State struct {
	ID    string    `json:"id"`
	By    string    `json:"by"` // the controller that acted last
	Began time.Time `json:"began"`
	Since time.Time `json:"since"` // of the stage
	Signs time.Time `json:"signs"` // when the new key may sign at the earliest
	Stage Stage     `json:"stage"`
	Back  bool      `json:"back,omitempty"` // the rotation is aborted: the new key is the one to drop
	Old   string    `json:"old"`
	New   string    `json:"new"`

	// Seals has an HMAC over the rest for each key that the writer had, by its ID: a controller
	// that has missed the new key must be able to believe that it has.
	Seals stages.Seals `json:"seals"`

	revision int64
}

// Running reports whether a rotation is under way.
func (s State) Running() bool { return s.ID != "" && s.Stage != StageDone }

// waits reports whether nobody needs to act.
func (s State) waits() bool { return s.Stage == StageWatch }

// needsNew reports whether others may sign with the new key.
func (s State) needsNew() bool {
	return s.Running() && (s.Stage == StageSign || s.Stage == StageWatch || s.Stage == StageDrop && !s.Back)
}

// dropped is the key that the rotation drops in the end.
func (s State) dropped() string {
	if s.Back {
		return s.New
	}
	return s.Old
}

// String is the rotation for people.
func (s State) String() string {
	if s.Back {
		return fmt.Sprintf("%s → %s (aborted)", Short(s.New), Short(s.Old))
	}
	return fmt.Sprintf("%s → %s", Short(s.Old), Short(s.New))
}

// Short is the beginning of a key's ID, which tells the few keys of a cluster apart.
func Short(id string) string { return id[:min(len(id), 8)] }

// seals computes the seal of each secret that this controller has.
func (s State) seals(l pki.Layout) (stages.Seals, error) {
	s.Seals = nil
	return stages.SealsOf(l, "service account rotation", s)
}

// errNoSeal means that something else than a controller has written the state.
var errNoSeal = advice.With(errors.New("has no controller's seal: something else than kthwd can write to etcd, or this controller lacks the key"),
	"see what it says: etcdctl get "+kind.StateKey()+"; if no rotation is under way, for the key was changed by hand, remove it: etcdctl del "+kind.StateKey())

// readState returns the zero value before the first rotation.
func readState(ctx context.Context, l pki.Layout, client *clientv3.Client, o ...clientv3.OpOption) (s State, err error) {
	if s.revision, err = kind.Fetch(ctx, client, &s, errNoSeal, o...); err != nil || s.revision == 0 {
		return State{}, err
	}
	want, err := s.seals(l)
	if err == nil && (s.ID == "" || !want.Match(s.Seals)) {
		err = kind.Unsealed(errNoSeal)
	}
	if err != nil {
		return State{}, err
	}
	return s, nil
}

// Admit refuses a controller whose files are those from before a rotation with which others may
// sign, or still have the key that a rotation has dropped: one that has joined with older files,
// or was restored. Call it before an API server uses the files, on a controller that has others.
// It waits for a quorum. A state without a seal admits everyone.
func Admit(ctx context.Context, l pki.Layout, client *clientv3.Client) error {
	if _, err := (State{}).seals(l); err != nil { // then no state can be believed
		return nil
	}
	return stages.Admit(ctx, func() (State, error) { return readState(ctx, l, client) }, errNoSeal, func(s State) error { return s.admits(l) })
}

// admits says why a controller with these files cannot serve now; nil if it can.
func (s State) admits(l pki.Layout) error {
	f, err := pki.ReadTokenFiles(l)
	if err != nil || s.ID == "" {
		return nil // which the API server reports
	}
	cert, key := l.Cert(pki.NameServiceAccount), l.Key(pki.NameServiceAccount)
	hint := fmt.Sprintf("copy %s and %s from another controller, and start kthwd again", cert, key)
	switch all := append(f.Accepted(), f.Signing()...); {
	case s.needsNew() && (!slices.Contains(f.Accepted(), s.New) || !slices.Contains(f.Signing(), s.New)):
		return advice.With(fmt.Errorf("%s or its key lacks the key %s, with which other controllers sign tokens: the service account key is being rotated", cert, Short(s.New)), hint)
	case s.Stage == StageDone && slices.Contains(all, s.dropped()):
		return advice.With(fmt.Errorf("%s or its key still has the key %s, which a rotation has dropped on the other controllers", cert, Short(s.dropped())), hint)
	}
	return nil
}

// save seals the state and writes it, unless it has changed or this controller may no longer act.
func (s *State) save(ctx context.Context, l pki.Layout, client *clientv3.Client, h *stages.Hold) (err error) {
	if s.Seals, err = s.seals(l); err != nil {
		return err
	}
	return h.Save(ctx, client, s, &s.revision)
}
