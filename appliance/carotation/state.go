package carotation

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/carotation/castate"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
)

// seals computes the seal of each secret that this controller has.
func (a *authority) seals(l pki.Layout, s castate.State) (stages.Seals, error) {
	s.Seals = nil
	return stages.SealsOf(l, a.purpose, s)
}

// readState returns the zero value before the first rotation.
func (a *authority) readState(ctx context.Context, l pki.Layout, client *clientv3.Client, o ...clientv3.OpOption) (s castate.State, err error) {
	if s.Revision, err = a.kind.Fetch(ctx, client, &s, a.noSeal, o...); err != nil || s.Revision == 0 {
		return castate.State{}, err
	}
	want, err := a.seals(l, s)
	if err == nil && (s.ID == "" || !want.Match(s.Seals)) {
		err = a.kind.Unsealed(a.noSeal)
	}
	if err != nil {
		return castate.State{}, err
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
		if _, err := a.seals(l, castate.State{}); err != nil { // then no state can be believed
			return nil
		}
		err := stages.Admit(ctx, func() (castate.State, error) { return a.readState(ctx, l, client) }, a.noSeal, func(s castate.State) error { return a.admits(s, l) })
		if err != nil {
			return err
		}
	}
	return nil
}

// admits says why a controller with these files cannot serve now; nil if it can.
func (a *authority) admits(s castate.State, l pki.Layout) error {
	c, err := pki.ReadCA(l, a.file)
	if err != nil || s.ID == "" {
		return nil // which the API server reports
	}
	cert := l.Cert(a.file)
	hint := fmt.Sprintf("copy %s and %s from another controller, have its certificates made anew with kthwd pki renew --all, and start kthwd again", cert, l.Key(a.file))
	switch {
	case s.SignsNew() && !c.Trusts(s.New):
		return advice.With(fmt.Errorf("%s lacks the CA %s, with which other controllers sign: %s is being replaced", cert, castate.Short(s.New), a.kind.What), hint)
	case s.Stage == castate.StageDone && c.Trusts(s.Dropped()):
		return advice.With(fmt.Errorf("%s still has the CA %s, which a rotation has dropped on the other controllers", cert, castate.Short(s.Dropped())), hint)
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

func (r *Rotation) readState(ctx context.Context, client *clientv3.Client, o ...clientv3.OpOption) (castate.State, error) {
	return r.a.readState(ctx, r.cfg.Layout, client, o...)
}

// save seals the state and writes it, unless it has changed or this controller may no longer act.
func (r *Rotation) save(ctx context.Context, client *clientv3.Client, h *stages.Hold, s *castate.State) (err error) {
	if s.Seals, err = r.a.seals(r.cfg.Layout, *s); err != nil {
		return err
	}
	return h.Save(ctx, client, s, &s.Revision)
}
