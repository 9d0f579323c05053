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

// Stage is a step of a rotation.
type Stage string

// The stages, in their order.
const (
	StageTrust      Stage = "trust"      // all controllers trust the new CA, too
	StageDistribute Stage = "distribute" // a person brings ca.pem to all others
	StageRestart    Stage = "restart"    // of etcd's CA, in the place of distribute: a person restarts every controller
	StageSign       Stage = "sign"       // all controllers sign with the new CA
	StageWatch      Stage = "watch"      // certificates of the old CA are accepted, and their users named, until it is dropped
	StageDrop       Stage = "drop"       // all controllers forget the old CA
	StageForget     Stage = "forget"     // of etcd's CA: a person restarts every controller, and etcd forgets the old one, too
	StageDone       Stage = "done"
)

var order = []Stage{StageTrust, StageDistribute, StageSign, StageWatch, StageDrop, StageForget}

// Number counts the stages from 1.
func (s Stage) Number() int {
	if s == StageRestart {
		s = StageDistribute
	}
	return slices.Index(order, s) + 1
}

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
func (s State) waits() bool {
	return s.before() && s.Stage != StageTrust || s.Stage == StageWatch || s.Stage == StageForget
}

// before reports whether the rotation is in a stage in which the old CA signs.
func (s State) before() bool {
	return s.Stage == StageTrust || s.Stage == StageDistribute || s.Stage == StageRestart
}

// Again is the last thing that a person does for another CA of etcd.
func (s State) Again() string {
	return "restart kthwd on every controller, one after the other, so that etcd refuses certificates of " + Short(s.dropped())
}

// drops reports whether a controller has the files without the CA that is dropped.
func (s State) drops() bool { return s.Stage == StageDrop || s.Stage == StageForget }

// signsNew reports whether others may sign with the new CA.
func (s State) signsNew() bool {
	return s.Running() && (s.Stage == StageSign || s.Stage == StageWatch || s.drops() && !s.Back)
}

// dropped is the CA that the rotation drops in the end.
func (s State) dropped() string {
	if s.Back {
		return s.New
	}
	return s.Old
}

// droppedCertificate is that of the CA which is dropped, DER.
func (s State) droppedCertificate() []byte {
	if s.Back {
		return s.Certificate
	}
	return s.Before
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
func (a *authority) seals(l pki.Layout, s State) (stages.Seals, error) {
	s.Seals = nil
	return stages.SealsOf(l, a.purpose, s)
}

// readState returns the zero value before the first rotation.
func (a *authority) readState(ctx context.Context, l pki.Layout, client *clientv3.Client, o ...clientv3.OpOption) (s State, err error) {
	if s.revision, err = a.kind.Fetch(ctx, client, &s, a.noSeal, o...); err != nil || s.revision == 0 {
		return State{}, err
	}
	want, err := a.seals(l, s)
	if err == nil && (s.ID == "" || !want.Match(s.Seals)) {
		err = a.kind.Unsealed(a.noSeal)
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
	for _, ca := range CAs() {
		a := ca.authority()
		if _, err := a.seals(l, State{}); err != nil { // then no state can be believed
			return nil
		}
		err := stages.Admit(ctx, func() (State, error) { return a.readState(ctx, l, client) }, a.noSeal, func(s State) error { return a.admits(s, l) })
		if err != nil {
			return err
		}
	}
	return nil
}

// admits says why a controller with these files cannot serve now; nil if it can.
func (a *authority) admits(s State, l pki.Layout) error {
	c, err := pki.ReadCA(l, a.file)
	if err != nil || s.ID == "" {
		return nil // which the API server reports
	}
	cert := l.Cert(a.file)
	hint := fmt.Sprintf("copy %s and %s from another controller, have its certificates made anew with kthwd pki renew --all, and start kthwd again", cert, l.Key(a.file))
	switch {
	case s.signsNew() && !c.Trusts(s.New):
		return advice.With(fmt.Errorf("%s lacks the CA %s, with which other controllers sign: %s is being replaced", cert, Short(s.New), a.kind.What), hint)
	case s.Stage == StageDone && c.Trusts(s.dropped()):
		return advice.With(fmt.Errorf("%s still has the CA %s, which a rotation has dropped on the other controllers", cert, Short(s.dropped())), hint)
	}
	return nil
}

// Reseal gives the state a seal of the key of service account tokens that signs now. It is refused
// while a rotation of the CA is under way.
func (r *Rotation) Reseal(ctx context.Context, client *clientv3.Client) error {
	s, err := r.readState(ctx, client)
	switch {
	case errors.Is(err, r.a.noSeal), err == nil && s.ID == "":
		return nil
	case err != nil:
		return err
	case s.Running():
		return advice.With(errors.New(r.a.kind.What+" is being replaced, too"), "let that end first: "+r.a.Verb("status"))
	}
	h, err := r.a.kind.Take(ctx, client, r.cfg.Name)
	if err != nil {
		return err
	}
	defer h.Release()
	return r.save(ctx, client, h, &s)
}

func (r *Rotation) readState(ctx context.Context, client *clientv3.Client, o ...clientv3.OpOption) (State, error) {
	return r.a.readState(ctx, r.cfg.Layout, client, o...)
}

// save seals the state and writes it, unless it has changed or this controller may no longer act.
func (r *Rotation) save(ctx context.Context, client *clientv3.Client, h *stages.Hold, s *State) (err error) {
	if s.Seals, err = r.a.seals(r.cfg.Layout, *s); err != nil {
		return err
	}
	return h.Save(ctx, client, s, &s.revision)
}
