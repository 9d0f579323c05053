package carotation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/advice"
	"kthwd/appliance/carotation/castate"
	"kthwd/appliance/carotation/handshake"
	"kthwd/appliance/carotation/watch"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
	"kthwd/appliance/supervise"
)

const (
	askTime  = 10 * time.Second // bounds a question
	takeTime = 3 * time.Minute  // bounds a stage: kube-controller-manager's term ends and begins in it
	lookTime = 5 * time.Second  // bounds a look at the API server or etcd here
	lookPoll = 200 * time.Millisecond
)

// request is a question to a controller. Without an ID it only asks for the state.
type request struct {
	Check bool   `json:"check,omitempty"` // whether the CA could be rotated
	ID    string `json:"id,omitempty"`    // of the rotation whose stage the controller is to take
	Key   []byte `json:"key,omitempty"`   // the new private key, PEM; empty where nobody needs it
	Watch string `json:"watch,omitempty"` // ID of the CA whose use is asked for
}

// Controller is the answer.
type Controller struct {
	stages.Answer
	Trusts  []string   `json:"trusts,omitempty"`  // IDs of the CAs in the file
	Accepts []string   `json:"accepts,omitempty"` // those of them whose certificates the API server accepts, or etcd at each of its ports
	Signs   string     `json:"signs,omitempty"`   // ID of the CA whose key is here
	Serves  string     `json:"serves,omitempty"`  // ID of the CA that has signed the certificate which that shows
	Manager bool       `json:"manager,omitempty"` // kube-controller-manager uses the files as they are
	Restart bool       `json:"restart,omitempty"` // kthwd there needs a restart; set in a report
	Late    []string   `json:"late,omitempty"`    // files with a certificate of another CA than the one that signs
	Use     *watch.Use `json:"use,omitempty"`     // of the CA asked for
}

// Peer answers the controller that carries a rotation on. Give it to others.Handle.
func (r *Rotation) Peer() http.Handler { return stages.Peer(r.answer) }

// answer does what another controller, or this one, asks for.
func (r *Rotation) answer(ctx context.Context, in request) Controller {
	c := Controller{Answer: stages.Answer{Name: r.cfg.Name}}
	err := r.cfg.Cannot
	if err == nil && in.Check {
		err = r.check()
	}
	if err == nil && in.ID != "" {
		err = r.accept(ctx, in)
	}
	if is, failed := r.read(); failed == nil {
		c.Trusts, c.Signs, c.Manager = is.IDs(), is.Signs(), r.managerKnows(state(is))
		if is.Signer != nil {
			c.Late = pki.SignedByOthers(r.cfg.Layout, r.a.file, is.Signer)
		}
		if c.Accepts, c.Serves, failed = r.look(ctx, is); failed != nil && err == nil {
			err = failed
		}
	} else if err == nil {
		err = failed
	}
	if in.Watch != "" {
		c.Use = r.cfg.Watch.Use(in.Watch)
	}
	if err != nil {
		c.Failed(err)
	}
	return c
}

// check says why this controller cannot take part.
func (r *Rotation) check() error {
	if stage := pki.StageOf(r.cfg.Layout); r.a.CA == Cluster && stage != pki.StageOwn {
		return advice.With(errors.New("its etcd uses the cluster's CA: it would have to be restarted for each stage"), "give etcd a CA of its own first: kthwd pki split-etcd-ca")
	}
	return pki.CARotatable(r.cfg.Layout, r.a.file, r.cfg.Life, time.Now())
}

// state is what kube-controller-manager reads of the CA at the start of a term.
func state(c pki.CA) string { return c.Signs() + " " + strings.Join(c.IDs(), ",") }

// managerKnows reports whether kube-controller-manager has begun its term with that state. Its first
// one has.
func (r *Rotation) managerKnows(now string) bool {
	if r.cfg.NewTerm == nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.manager == "" {
		r.manager = now
	}
	return r.manager == now
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
	s, err := r.readState(ctx, client)
	switch {
	case err != nil:
		return err
	case !s.Running() || s.ID != in.ID:
		return errors.New("the stage is not that of a rotation under way")
	}
	r.note(s)
	is, err := r.read()
	if err != nil {
		return err
	}
	r.managerKnows(state(is))
	f, err := r.a.form(s, r.cfg.Name, is, in.Key)
	if err != nil {
		return err
	}
	if err := r.replace(is, f, func() error { return r.signAnew(s, f.signs) }); err != nil {
		return err
	}
	if err := r.manage(ctx); err != nil {
		return err
	}
	if s.SignsNew() {
		r.settle(ctx)
	}
	return r.awaitServer(ctx, s)
}

// replace writes the files around sign: a program trusts a CA before it meets a certificate of it, until it has
// met the last one. A key that does not stay goes last, for sign may be repeated.
func (r *Rotation) replace(is pki.CA, f files, sign func() error) error {
	next := f.next
	if next == nil {
		next = is.Next
	}
	changed, err := pki.SetCA(r.cfg.Layout, r.a.file, withAll(f.trusted, is.Trusted), f.key, next)
	r.cfg.Changed(changed)
	if err != nil {
		return err
	}
	if err = sign(); err == nil {
		changed, err = pki.SetCA(r.cfg.Layout, r.a.file, f.trusted, f.key, f.next)
		r.cfg.Changed(changed)
	}
	return err
}

// signAnew makes the certificates of another CA than the one that signs anew.
func (r *Rotation) signAnew(s castate.State, key []byte) error {
	if r.a.CA == Cluster && s.SignsNew() {
		changed, err := pki.PublicTokenKeys(r.cfg.Layout)
		if changed {
			r.cfg.Changed([]string{r.cfg.Layout.Cert(pki.NameServiceAccount)})
		}
		if err != nil {
			return err
		}
	}
	if key == nil { // nothing is of another CA, see form
		return nil
	}
	done, err := pki.Renew(r.cfg.Layout, pki.RenewOptions{Moved: r.a.file, CAKey: key, Life: r.cfg.Life})
	var changed []string
	for _, d := range done {
		changed = append(changed, d.File)
		r.cfg.Log.Info("certificate signed by the new CA", "file", d.File, "until", d.Until, "old", d.Kept)
	}
	r.cfg.Changed(changed)
	return err
}

// withAll is the first list, followed by what only the second one has.
func withAll(a, b []*x509.Certificate) []*x509.Certificate {
	all := slices.Clone(a)
	for _, ca := range b {
		if !slices.ContainsFunc(all, ca.Equal) {
			all = append(all, ca)
		}
	}
	return all
}

// manage lets kube-controller-manager begin a new term if its files are others than at the start of
// its last one.
func (r *Rotation) manage(ctx context.Context) error {
	is, err := r.read()
	if err != nil || r.managerKnows(state(is)) {
		return err
	}
	if err := r.cfg.NewTerm(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.manager = state(is)
	return nil
}

// settle waits until the API server here uses the certificate as it is now, where that is a matter of
// time: kube-aggregator shows its own to extension API servers only.
func (r *Rotation) settle(ctx context.Context) {
	info, err := os.Stat(r.cfg.Layout.Cert(pki.OwnCertificate(r.a.file)))
	if err != nil || r.cfg.Settle == 0 {
		return // the rest of the stage says what is wrong with the file
	}
	supervise.Sleep(ctx, min(r.cfg.Settle, time.Until(info.ModTime().Add(r.cfg.Settle))))
}

// awaitServer waits until the API server here uses the files: it follows them, within a minute at
// most (apiserver/pkg/server/dynamiccertificates).
func (r *Rotation) awaitServer(ctx context.Context, s castate.State) error {
	for {
		is, err := r.read()
		if err != nil {
			return err
		}
		accepts, serves, err := r.look(ctx, is)
		if err == nil {
			if err = r.follows(s, is, accepts, serves); err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return err
		}
		supervise.Sleep(ctx, lookPoll)
	}
}

// follows says what the API server here does not follow yet.
func (r *Rotation) follows(s castate.State, is pki.CA, accepts []string, serves string) error {
	for _, id := range is.IDs() {
		if r.a.CA != Etcd && !slices.Contains(accepts, id) {
			return fmt.Errorf("its API server does not accept certificates of %s yet", castate.Short(id))
		}
	}
	if r.a.CA != Etcd && s.Stage == castate.StageDrop && slices.Contains(accepts, s.Dropped()) {
		return fmt.Errorf("its API server still accepts certificates of %s", castate.Short(s.Dropped()))
	}
	if serves != is.Signs() {
		return fmt.Errorf("its %s does not show a certificate of %s yet", r.a.server(), castate.Short(is.Signs()))
	}
	return nil
}

// look learns in a handshake with the API server or etcd here whose certificates it accepts, because a server
// names the CAs when it asks for a certificate (RFC 8446, 4.2.4): those of the cluster and the front
// proxy. It learns which CA has signed the server's own, too; that of the front proxy is looked at in its file.
// Those of the rotation are recognized, too, when they are in no file.
func (r *Rotation) look(ctx context.Context, is pki.CA) (accepts []string, serves string, err error) {
	known := withAll(is.Trusted, r.ofRotation())
	if r.a.CA == Etcd {
		return r.lookAtEtcd(ctx, known)
	}
	u, err := url.Parse(r.cfg.Server)
	if err != nil {
		return nil, "", err
	}
	accepts, serves, err = handshake.CAs(ctx, u.Host, known, nil)
	if err != nil {
		return nil, "", advice.With(fmt.Errorf("its API server does not answer: %w", err), "kthwd status names the cause")
	}
	if r.a.CA != Cluster {
		serves = pki.Shows(r.cfg.Layout, r.a.file, known)
	}
	return accepts, serves, nil
}

// lookAtEtcd is look for the ports of etcd here, which refuse a connection without a certificate: they are shown
// this controller's own.
func (r *Rotation) lookAtEtcd(ctx context.Context, known []*x509.Certificate) (accepts []string, serves string, err error) {
	own, err := r.ownPair()
	if err != nil {
		return nil, "", err
	}
	for i, port := range r.cfg.Ports() {
		here, by, err := handshake.CAs(ctx, port, known, &own)
		switch {
		case err != nil:
			return nil, "", advice.With(fmt.Errorf("its etcd does not answer at %s: %w", port, err), "kthwd status names the cause")
		case i == 0:
			accepts, serves = here, by
		case !slices.Equal(accepts, here) || serves != by:
			return nil, "", advice.With(errors.New("the ports of its etcd do not have the same CAs"), "restart kthwd on "+r.cfg.Name)
		}
	}
	return accepts, serves, nil
}

// ownPair is the certificate by which this controller shows which CA signs.
func (r *Rotation) ownPair() (tls.Certificate, error) {
	name := pki.OwnCertificate(r.a.file)
	return tls.LoadX509KeyPair(r.cfg.Layout.Cert(name), r.cfg.Layout.Key(name))
}

// files are those of a controller in a stage.
type files struct {
	trusted []*x509.Certificate // in the file of the CA
	key     []byte              // of the CA; nil where that is kept elsewhere
	next    []byte              // the key that does not sign yet; nil for none
	signs   []byte              // the key with which the controller's certificates are signed; nil if none needs that
}

// form returns the files that the controller of that name has in a stage. Each form follows from
// every earlier one, so that a controller that has missed a stage can take part again. One without
// a key gets none for longer than it needs, but for the one that has made the new CA.
func (a *authority) form(s castate.State, name string, is pki.CA, key []byte) (f files, err error) {
	ca, err := s.CA()
	if err != nil {
		return f, err
	}
	without := func(id string) []*x509.Certificate {
		return slices.DeleteFunc(slices.Clone(is.Trusted), func(c *x509.Certificate) bool { return pki.CAID(c) == id })
	}
	if s.Drops() && s.Back {
		if is.Signs() != s.Old {
			return f, a.lacks(s.Old)
		}
		return files{trusted: without(s.New), key: is.Key}, nil
	}
	for _, here := range [][]byte{is.Next, is.Key} {
		if here != nil && pki.KeyOfCA(here, ca) {
			key = here
		}
	}
	if !pki.KeyOfCA(key, ca) {
		key = nil
	}
	both := withAll(is.Trusted, []*x509.Certificate{ca})
	if s.OldSigns() {
		switch {
		case is.Signs() != s.Old:
			return f, a.lacks(s.Old)
		case key == nil:
			return f, a.lacks(s.New)
		}
		return files{trusted: both, key: is.Key, next: key}, nil
	}
	f = files{trusted: both, signs: key}
	switch keeps := is.Key != nil || s.Origin == name; {
	case key != nil && keeps:
		f.key = key
	case key == nil && (keeps || is.Signs() != s.New):
		return f, a.lacks(s.New)
	}
	if s.Drops() {
		f.trusted = withAll([]*x509.Certificate{ca}, without(s.Old))
	} else if !is.Trusts(s.Old) {
		return f, a.lacks(s.Old)
	}
	return f, nil
}

// confirmed says what keeps a controller from having taken a stage; nil if it has.
func (a *authority) confirmed(s castate.State, c Controller) error {
	signs, trusts, not := s.New, []string{s.Old, s.New}, ""
	switch {
	case s.OldSigns():
		signs = s.Old
	case s.Drops() && s.Back:
		signs, trusts, not = s.Old, []string{s.Old}, s.New
	case s.Drops():
		trusts, not = []string{s.New}, s.Old
	}
	lacks := func(ids []string) bool {
		return slices.ContainsFunc(trusts, func(id string) bool { return !slices.Contains(ids, id) })
	}
	// etcd has the CAs of its files only after a restart, which a person decides about.
	late := a.CA == Etcd && (s.OldSigns() || s.Stage == castate.StageDrop)
	switch {
	case c.Signs != signs:
		return fmt.Errorf("it signs with %s, and not with %s", castate.Short(c.Signs), castate.Short(signs))
	case c.Serves != signs:
		return fmt.Errorf("its %s does not show a certificate of %s", a.server(), castate.Short(signs))
	case lacks(c.Trusts):
		return fmt.Errorf("its %s has %s only", a.certFile(), shorts(c.Trusts))
	case lacks(c.Accepts) && !late:
		return a.mayNeedRestart(c, fmt.Errorf("its %s accepts certificates of %s only", a.server(), shorts(c.Accepts)))
	case !c.Manager:
		return errors.New("its kube-controller-manager has not begun a term with the CAs of now")
	case not != "" && slices.Contains(c.Trusts, not):
		return fmt.Errorf("it still trusts %s", castate.Short(not))
	case not != "" && slices.Contains(c.Accepts, not) && !late:
		return a.mayNeedRestart(c, fmt.Errorf("its %s still accepts certificates of %s", a.server(), castate.Short(not)))
	case len(c.Late) > 0:
		return fmt.Errorf("%s: not signed by %s yet", strings.Join(c.Late, ", "), castate.Short(signs))
	}
	return nil
}

// mayNeedRestart adds to an error the restart that ends it.
func (a *authority) mayNeedRestart(c Controller, err error) error {
	if a.CA != Etcd {
		return err
	}
	return advice.With(err, "restart kthwd on "+c.Name)
}

// wantsRestart reports whether an etcd that accepts certificates of these CAs needs a restart in this
// stage.
func (a *authority) wantsRestart(s castate.State, accepts []string) bool {
	switch {
	case a.CA != Etcd || !s.Running() || s.Stage == castate.StageTrust:
		return false
	case s.Drops():
		return slices.Contains(accepts, s.Dropped())
	}
	return !slices.Contains(accepts, s.New)
}

func shorts(ids []string) string {
	var all []string
	for _, id := range ids {
		all = append(all, castate.Short(id))
	}
	return strings.Join(all, ", ")
}

// ask asks all controllers, this one first.
func (r *Rotation) ask(ctx context.Context, in request, within time.Duration) ([]Controller, error) {
	return stages.Ask(ctx, r.cfg.Others, r.a.PeerPath(), in, within, func() Controller {
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		return r.answer(ctx, in)
	})
}

// notConfirmed is an error that names each controller that has not taken a stage; nil without one.
func (a *authority) notConfirmed(s castate.State, all []Controller) error {
	for i, c := range all {
		if err := a.confirmed(s, c); c.Error == "" && err != nil {
			all[i].Failed(err)
		}
	}
	return stages.Complaints(all)
}
