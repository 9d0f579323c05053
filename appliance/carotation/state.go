package carotation

import (
	"context"
	"crypto/x509"
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
var kind = stages.Kind{What: "the cluster's CA", Command: "kthwd pki ca", Prefix: "/kthwd/ca/"}

// Stage is a step of a rotation.
type Stage string

// The stages, in their order.
const (
	StageTrust      Stage = "trust"      // all controllers trust the new CA, too
	StageDistribute Stage = "distribute" // a person brings ca.pem to all others
	StageSign       Stage = "sign"       // all controllers sign with the new CA
	StageWatch      Stage = "watch"      // certificates of the old CA are accepted, and their users named, until it is dropped
	StageDrop       Stage = "drop"       // all controllers forget the old CA
	StageDone       Stage = "done"
)

var order = []Stage{StageTrust, StageDistribute, StageSign, StageWatch, StageDrop}

// Number counts the stages from 1.
func (s Stage) Number() int { return slices.Index(order, s) + 1 }

// Of is the number of stages.
const Of = 5

// State is a rotation, as etcd has it. It holds no key.
type State struct {
	ID          string    `json:"id"`
	By          string    `json:"by"`     // the controller that acted last
	Origin      string    `json:"origin"` // the one that has made the new CA, and keeps its key in any case
	Began       time.Time `json:"began"`
	Since       time.Time `json:"since"` // of the stage
	Stage       Stage     `json:"stage"`
	Back        bool      `json:"back,omitempty"` // the rotation is aborted: the new CA is the one to drop
	Old         string    `json:"old"`            // ID of the CA, see pki.CAID
	New         string    `json:"new"`
	Certificate []byte    `json:"certificate"` // of the new CA, DER
	Before      []byte    `json:"before"`      // that of the old one

	// Seals has an HMAC over the rest for each key of service account tokens that the writer had,
	// by its ID: only a controller can make one.
	Seals stages.Seals `json:"seals"`

	revision int64
}

// Running reports whether a rotation is under way.
func (s State) Running() bool { return s.ID != "" && s.Stage != StageDone }

// waits reports whether the rotation waits for a person.
func (s State) waits() bool { return s.Stage == StageDistribute || s.Stage == StageWatch }

// signsNew reports whether others may sign with the new CA.
func (s State) signsNew() bool {
	return s.Running() && (s.Stage == StageSign || s.Stage == StageWatch || s.Stage == StageDrop && !s.Back)
}

// dropped is the CA that the rotation drops in the end.
func (s State) dropped() string {
	if s.Back {
		return s.New
	}
	return s.Old
}

// ca is the certificate of the new CA.
func (s State) ca() (*x509.Certificate, error) {
	ca, err := x509.ParseCertificate(s.Certificate)
	if err == nil && pki.CAID(ca) != s.New {
		err = errors.New("it is not the CA of the rotation")
	}
	return ca, err
}

// String is the rotation for people.
func (s State) String() string {
	if s.Back {
		return fmt.Sprintf("%s → %s (aborted)", Short(s.New), Short(s.Old))
	}
	return fmt.Sprintf("%s → %s", Short(s.Old), Short(s.New))
}

// Short is the beginning of a CA's ID, which tells the few CAs of a cluster apart.
func Short(id string) string { return id[:min(len(id), 8)] }

// seals computes the seal of each secret that this controller has.
func (s State) seals(l pki.Layout) (stages.Seals, error) {
	s.Seals = nil
	return stages.SealsOf(l, "CA rotation", s)
}

// errNoSeal means that something else than a controller has written the state.
var errNoSeal = advice.With(errors.New("has no controller's seal: something else than kthwd can write to etcd, or this controller lacks the service account key"),
	"see what it says: etcdctl get "+kind.StateKey()+"; if no rotation is under way, remove it: etcdctl del "+kind.StateKey())

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

// Admit refuses a controller whose files are those from before a rotation with whose CA others may
// sign, or still have the CA that a rotation has dropped: one that has joined with older files, or
// was restored. Call it before an API server uses the files, on a controller that has others. It
// waits for a quorum. A state without a seal admits everyone.
func Admit(ctx context.Context, l pki.Layout, client *clientv3.Client) error {
	if _, err := (State{}).seals(l); err != nil { // then no state can be believed
		return nil
	}
	return stages.Admit(ctx, func() (State, error) { return readState(ctx, l, client) }, errNoSeal, func(s State) error { return s.admits(l) })
}

// admits says why a controller with these files cannot serve now; nil if it can.
func (s State) admits(l pki.Layout) error {
	c, err := pki.ReadClusterCA(l)
	if err != nil || s.ID == "" {
		return nil // which the API server reports
	}
	hint := fmt.Sprintf("copy %s and %s from another controller, have its certificates made anew with kthwd pki renew --all, and start kthwd again", l.CA(), l.CAKey())
	switch {
	case s.signsNew() && !c.Trusts(s.New):
		return advice.With(fmt.Errorf("%s lacks the CA %s, with which other controllers sign: the cluster's CA is being replaced", l.CA(), Short(s.New)), hint)
	case s.Stage == StageDone && c.Trusts(s.dropped()):
		return advice.With(fmt.Errorf("%s still has the CA %s, which a rotation has dropped on the other controllers", l.CA(), Short(s.dropped())), hint)
	}
	return nil
}

// Reseal gives the state a seal of the key of service account tokens that signs now. It is refused
// while a rotation of the CA is under way.
func (r *Rotation) Reseal(ctx context.Context, client *clientv3.Client) error {
	s, err := readState(ctx, r.cfg.Layout, client)
	switch {
	case errors.Is(err, errNoSeal), err == nil && s.ID == "":
		return nil
	case err != nil:
		return err
	case s.Running():
		return advice.With(errors.New("the cluster's CA is being replaced, too"), "let that end first: kthwd pki ca status")
	}
	h, err := kind.Take(ctx, client, r.cfg.Name)
	if err != nil {
		return err
	}
	defer h.Release()
	return s.save(ctx, r.cfg.Layout, client, h)
}

// save seals the state and writes it, unless it has changed or this controller may no longer act.
func (s *State) save(ctx context.Context, l pki.Layout, client *clientv3.Client, h *stages.Hold) (err error) {
	if s.Seals, err = s.seals(l); err != nil {
		return err
	}
	return h.Save(ctx, client, s, &s.revision)
}
