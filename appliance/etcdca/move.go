package etcdca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/advice"
	"kthwd/appliance/datadir"
	"kthwd/appliance/etcd"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// Config describes a Mover.
type Config struct {
	Name   string // this controller's
	Layout pki.Layout
	Etcd   *etcd.Member
	Log    *slog.Logger
}

// Mover moves this controller. Make one with New.
type Mover struct {
	name    string
	layout  pki.Layout
	etcd    *etcd.Member
	log     *slog.Logger
	started pki.Stage // at which etcd has started

	mu sync.Mutex // one step at a time
}

// New makes the Mover of a controller whose files are complete and whose etcd starts with
// them.
func New(c Config) *Mover {
	return &Mover{name: c.Name, layout: c.Layout, etcd: c.Etcd, log: c.Log, started: pki.StageOf(c.Layout)}
}

// Path is the path of the verb on the control socket.
const Path = "/etcd-ca"

// Request is what kthwd pki split-etcd-ca asks for.
type Request struct {
	Plan  bool `json:"plan,omitempty"`  // change nothing
	NewCA bool `json:"newCA,omitempty"` // make the CA here although ca-key.pem is elsewhere
}

// Moved is the answer: where this controller and the others are.
type Moved struct {
	Name    string    `json:"name"`
	Stage   pki.Stage `json:"stage"`
	Started pki.Stage `json:"started"` // at which etcd runs; a restart is missing if it differs
	Others  []Other   `json:"others,omitempty"`
	Made    []string  `json:"made,omitempty"` // files written by this request
	Next    string    `json:"next"`           // what to do now, or what the next step is
}

// Restart reports whether this controller has files that it has not started with.
func (m Moved) Restart() bool { return m.Stage != m.Started }

// Private returns the handler of the verb, for the unix socket.
func (m *Mover) Private() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{"POST " + Path: func(w http.ResponseWriter, r *http.Request) {
		var in Request
		err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&in)
		var out Moved
		if err == nil {
			out, err = m.Move(r.Context(), in)
		}
		if err != nil {
			status.Refuse(w, http.StatusConflict, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // an error means that the client has gone
	}}
}

// Move takes every step that the other controllers allow, or only looks. An error in the
// middle leaves a directory in which kthwd starts; the next Move continues.
func (m *Mover) Move(ctx context.Context, in Request) (Moved, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	server := m.etcd.Running()
	if server == nil {
		return Moved{}, advice.With(errors.New("etcd has not started yet"), "kthwd status says what it waits for")
	}
	if err := m.usesOurFiles(server); err != nil {
		return Moved{}, err
	}
	client := v3client.New(server.Server)
	defer client.Close()
	out := Moved{Name: m.name, Started: m.started}
	for {
		more, err := m.step(ctx, in, server, client, &out)
		if err != nil || !more {
			return out, err
		}
	}
}

// usesOurFiles refuses a controller whose user has set etcd's files.
func (m *Mover) usesOurFiles(server *embed.Etcd) error {
	want := m.started.Files(m.layout)
	cfg := server.Config()
	for _, port := range []transport.TLSInfo{cfg.ClientTLSInfo, cfg.PeerTLSInfo} {
		if port.CertFile != want.Cert || port.KeyFile != want.Key || port.TrustedCAFile != want.CA {
			return advice.With(fmt.Errorf("etcd uses %s and %s, which --etcd-arg names: kthwd does not change these", port.CertFile, port.TrustedCAFile),
				"take cert-file, key-file, trusted-ca-file and the three peer- flags out of --etcd-arg, or give etcd another CA there by hand")
		}
	}
	return nil
}

// step takes one step, if it may. It returns false when there is none to take.
func (m *Mover) step(ctx context.Context, in Request, server *embed.Etcd, client *clientv3.Client, out *Moved) (more bool, err error) {
	out.Stage = pki.StageOf(m.layout)
	own, err := m.authority(ctx, client, out.Stage)
	if err != nil {
		return false, err
	}
	if out.Others, err = m.others(ctx, server, own); err != nil {
		return false, err
	}
	switch out.Stage {
	case pki.StageShared:
		more, err = m.trust(ctx, in, client, own, out)
	case pki.StageTrust:
		more, err = m.use(ctx, in, client, own, out)
	case pki.StageUse:
		more, err = m.drop(in, out)
	default:
		m.finished(out)
	}
	if more {
		m.log.Info("etcd moves to a CA of its own: from the next start on it " + pki.StageOf(m.layout).String())
	}
	return more, err
}

// authority returns etcd's own CA as this controller or the cluster knows it; nil before
// there is one.
func (m *Mover) authority(ctx context.Context, client *clientv3.Client, stage pki.Stage) (*x509.Certificate, error) {
	if stage != pki.StageShared {
		return pki.EtcdCA(m.layout)
	}
	r, err := m.get(ctx, client, caKey)
	if err != nil || len(r.Certificate) == 0 {
		return nil, err
	}
	return pki.ParseCA(r.Certificate)
}

// trust makes etcd trust the new CA, and makes that CA on the controller that begins.
func (m *Mover) trust(ctx context.Context, in Request, client *clientv3.Client, own *x509.Certificate, out *Moved) (more bool, err error) {
	begins := own == nil
	if begins && !in.NewCA && !datadir.Exists(m.layout.CAKey()) {
		return false, advice.With(fmt.Errorf("the move begins where the keys of CAs are kept, and %s is not here", m.layout.CAKey()),
			"run this first on a controller that has ca-key.pem; if none has, kthwd pki split-etcd-ca --new-ca makes etcd-ca-key.pem here, to move where you keep ca-key.pem")
	}
	if in.Plan {
		out.Next = "kthwd pki split-etcd-ca makes etcd trust a CA of its own besides the cluster's"
		if begins {
			out.Next += ", and makes that CA"
		}
		return false, nil
	}
	if begins {
		if own, err = m.begin(ctx, client, out); err != nil {
			return false, err
		}
	}
	if err := pki.TrustEtcdCA(m.layout, own); err != nil {
		return false, err
	}
	out.Made = append(out.Made, m.layout.EtcdCA())
	return true, nil
}

// begin makes the CA and publishes its certificate. If another controller was first, its CA
// counts.
func (m *Mover) begin(ctx context.Context, client *clientv3.Client, out *Moved) (*x509.Certificate, error) {
	ca, err := pki.NewEtcdCA(m.layout)
	if err != nil {
		return nil, err
	}
	done, err := m.put(ctx, client, caKey, record{Certificate: ca.Raw})
	if err != nil {
		return nil, err
	}
	if !done {
		return nil, advice.With(errors.New("another controller has begun at the same moment"),
			"move "+m.layout.EtcdCAKey()+", which has signed nothing, away, and run this again")
	}
	out.Made = append(out.Made, m.layout.EtcdCAKey())
	return ca, nil
}

// use makes etcd show a certificate of its own CA, once all others trust that CA.
func (m *Mover) use(ctx context.Context, in Request, client *clientv3.Client, own *x509.Certificate, out *Moved) (more bool, err error) {
	if out.awaits(pki.StageTrust) {
		return false, nil
	}
	if in.Plan {
		out.Next = "kthwd pki split-etcd-ca makes etcd show a certificate of its own CA"
		return false, nil
	}
	had := datadir.Exists(m.layout.Key(pki.NameEtcd))
	cert, err := m.certificate(ctx, client)
	if err != nil {
		return false, err
	}
	if refused := m.refused(ctx, cert, own, out.Others); refused != "" {
		out.Next = refused
		return false, nil
	}
	if err := pki.UseEtcdCertificate(m.layout, cert); err != nil {
		return false, err
	}
	if !had {
		out.Made = append(out.Made, m.layout.Key(pki.NameEtcd))
	}
	out.Made = append(out.Made, m.layout.Cert(pki.NameEtcd))
	return true, nil
}

// refused presents the certificate to all others before etcd depends on it.
func (m *Mover) refused(ctx context.Context, cert []byte, own *x509.Certificate, others []Other) string {
	certPEM, keyPEM, ok := pki.EtcdPair(m.layout, cert)
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	cluster, errCAs := pki.ClusterCAs(m.layout)
	if !ok || errors.Join(err, errCAs) != nil {
		return "the new certificate does not fit its key or its CA"
	}
	for _, o := range others {
		ctx, cancel := context.WithTimeout(ctx, lookTimeout)
		_, err := m.handshake(ctx, o.address, &pair, authorities{own: own, cluster: cluster}, nil)
		cancel()
		if err != nil {
			return fmt.Sprintf("%s does not accept the new certificate (%v): compare etcd-ca.pem there with the one here", o.Name, err)
		}
	}
	return ""
}

// The time that a controller with etcd-ca-key.pem gets to answer a request.
const (
	signTimeout = 15 * time.Second
	signPoll    = 250 * time.Millisecond
)

// certificate returns a certificate for this controller's etcd: from the key that is here,
// or from the controller that has it.
func (m *Mover) certificate(ctx context.Context, client *clientv3.Client) ([]byte, error) {
	request, err := pki.EtcdRequest(m.layout)
	if err != nil {
		return nil, err
	}
	cert, err := pki.SignEtcdRequest(m.layout, request)
	if !errors.Is(err, pki.ErrNoCAKey) {
		return cert, err
	}
	key := requestsPrefix + m.name
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	for asked := false; ; supervise.Sleep(ctx, signPoll) {
		r, err := m.get(ctx, client, key)
		if ctx.Err() != nil {
			return nil, advice.With(errors.New("no controller has issued the certificate: the one with etcd-ca-key.pem does not run, or the key is elsewhere"),
				"start it and run this again; or copy etcd-ca-key.pem here for this step")
		}
		if err != nil {
			return nil, err
		}
		if _, _, ok := pki.EtcdPair(m.layout, r.Certificate); ok {
			return r.Certificate, nil
		}
		if !asked || len(r.Certificate) > 0 { // none, or one for a key that is lost
			if asked, err = m.put(ctx, client, key, record{Request: request, revision: r.revision}); err != nil {
				return nil, err
			}
		}
	}
}

// drop ends etcd's trust in the cluster's CA, once all others show a certificate of the new
// one.
func (m *Mover) drop(in Request, out *Moved) (more bool, err error) {
	if out.awaits(pki.StageUse) {
		return false, nil
	}
	if in.Plan {
		out.Next = "kthwd pki split-etcd-ca makes etcd trust its own CA alone"
		return false, nil
	}
	if err := pki.TrustEtcdCAOnly(m.layout); err != nil {
		return false, err
	}
	out.Made = append(out.Made, m.layout.EtcdCA())
	return true, nil
}

// finished says what is left once this controller has taken its last step.
func (m *Mover) finished(out *Moved) {
	if out.awaits(pki.StageOwn) {
		return
	}
	out.Next = "nothing: etcd has a CA of its own on all controllers"
	if out.Restart() {
		out.Next = "restart kthwd here, and etcd has a CA of its own"
	}
}

// awaits reports whether another controller must reach the stage first, and says so.
func (m *Moved) awaits(stage pki.Stage) bool {
	for _, o := range m.Others {
		switch {
		case o.Error != "":
			m.Next = fmt.Sprintf("%s must answer first: %s", o.Name, o.Error)
		case o.Stage < stage:
			m.Next = fmt.Sprintf("on %s: kthwd pki split-etcd-ca, then restart kthwd there", o.Name)
		default:
			continue
		}
		if m.Restart() {
			m.Next = "restart kthwd here; then " + m.Next
		}
		return true
	}
	return false
}
