package membership

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/member"
	"kthwd/appliance/membership/joins"
	"kthwd/appliance/membership/refusals"
	"kthwd/appliance/pki"
	"kthwd/appliance/preflight"
	"kthwd/appliance/version"
	"kthwd/health/conns"
)

// joinEndpoint is the port on which controllers join. It is open only while a token
// exists.
type joinEndpoint struct {
	address string
	layout  pki.Layout
	handler http.Handler
	log     *slog.Logger

	mu     sync.Mutex
	server *http.Server
	failed string // the last error of opening it, logged once
}

// open opens the port; it does nothing if the port is open.
func (e *joinEndpoint) open() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server != nil {
		return nil
	}
	tls, err := e.tls()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", e.address)
	if err != nil {
		if err.Error() != e.failed {
			e.failed = err.Error()
			e.log.Warn("no controller can join here", "err", err)
		}
		return advice.With(err, preflight.PortHint(err, e.address, "--join-port"))
	}
	e.failed = ""
	limit := conns.New(refusals.Conns)
	e.server = &http.Server{
		Handler: e.handler, TLSConfig: tls, ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 40 * time.Second, MaxHeaderBytes: 16 << 10,
		ConnState: limit.Track,
	}
	go e.server.ServeTLS(l, "", "") // ends with close
	e.log.Info("open for controllers that join", "addr", e.address)
	return nil
}

// close closes the port; it does nothing if the port is closed.
func (e *joinEndpoint) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if e.server.Shutdown(ctx) != nil {
		e.server.Close()
	}
	e.server = nil
	e.log.Info("closed for controllers that join", "addr", e.address)
}

// tls serves kubernetes.pem followed by the CA's certificate, of which the joiner has
// only the hash.
func (e *joinEndpoint) tls() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(e.layout.Cert(pki.NameKubernetes), e.layout.Key(pki.NameKubernetes))
	if err != nil {
		return nil, err
	}
	_, ca, err := pki.Pin(e.layout)
	if err != nil {
		return nil, err
	}
	cert.Certificate = append(slices.Clone(cert.Certificate), ca)
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, nil
}

// joinHandler serves the two requests of a joiner.
func (m *Members) joinHandler() http.Handler {
	mux, limit := http.NewServeMux(), refusals.NewLimit()
	mux.HandleFunc("POST "+member.FilesPath, joinAnswer(m.log, limit, m.refused, m.giveFiles))
	mux.HandleFunc("POST "+member.AdmitPath, joinAnswer(m.log, limit, m.refused, m.admit))
	return mux
}

// joinAnswer makes the handler of one request. It logs each refusal within the limit.
func joinAnswer[T any](log *slog.Logger, limit *refusals.Limit, refused *refusals.Counter, step func(context.Context, member.Request) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		done, dropped := limit.Begin(r.RemoteAddr)
		if done == nil {
			refused.Refused(refusals.ReasonDropped, r.RemoteAddr, nil)
			tooMany(w, r, log, dropped)
			return
		}
		var in member.Request
		if json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&in) != nil {
			done(true)
			refused.Refused(refusals.ReasonForm, r.RemoteAddr, nil)
			http.Error(w, "no request of kthwd join", http.StatusBadRequest)
			return
		}
		in.From = r.RemoteAddr
		out, err := step(r.Context(), in)
		if err == nil {
			done(false)
			_ = json.NewEncoder(w).Encode(out) // if the joiner has gone, it may try again
			return
		}
		f := member.Failed{Error: err.Error()}
		var refusal *member.Refusal
		if errors.As(err, &refusal) {
			f.Retry, f.Source = refusal.Retry, refusal.Source
		}
		f.Hint, _ = advice.Of(err)
		done(!f.Retry)
		refused.Refused(refusals.ReasonOther, r.RemoteAddr, refusal)
		level, more := slog.LevelWarn, []any{}
		if f.Retry {
			level = slog.LevelDebug
		}
		if dropped > 0 {
			more = []any{"dropped-before", dropped}
		}
		log.Log(r.Context(), level, "join refused", append([]any{"from", r.RemoteAddr, "join", printableID(in.ID), "err", err}, more...)...)
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(f)
	}
}

// tooMany answers a source that has been refused too often. Only the first of these
// answers is logged: the next line about the source gives the number of the others.
func tooMany(w http.ResponseWriter, r *http.Request, log *slog.Logger, dropped int) {
	if dropped == 1 {
		log.Warn("join requests of a source are dropped, because it has been refused too often", "from", r.RemoteAddr)
	}
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(http.StatusTooManyRequests)
	_ = json.NewEncoder(w).Encode(member.Failed{Error: "too many requests from " + refusals.Host(r.RemoteAddr) + " were refused", Hint: "wait a moment; " + newToken, Retry: true})
}

// printableID makes an ID from the network short and safe to log.
func printableID(id string) string { return fmt.Sprintf("%.16q", id) }

// newToken is the hint for a token that no longer works.
const newToken = "make a new one on a controller: kthwd member add NAME ADDRESS"

// joinOf returns the join that a request's token belongs to, or a *member.Refusal.
func (m *Members) joinOf(ctx context.Context, client *clientv3.Client, in member.Request) (joins.Join, error) {
	all, _, err := m.joins(ctx, client)
	if err != nil {
		return joins.Join{}, err
	}
	i := slices.IndexFunc(all, func(j joins.Join) bool { return j.ID == in.ID })
	if i < 0 {
		return joins.Join{}, &member.Refusal{Reason: refusals.ReasonUnknown, Text: "the token is not known here: it has expired, was used, or there is a newer one", Advice: newToken}
	}
	return all[i], m.judge(all[i], in)
}

// judge returns a *member.Refusal if a request may not have what the token of j gives.
func (m *Members) judge(j joins.Join, in member.Request) error {
	fits := version.Member(m.version).Fits(in.Versions)
	switch hash := (member.Token{ID: in.ID, Secret: in.Secret}).Hash(); {
	case subtle.ConstantTimeCompare(hash, j.Secret) != 1:
		return &member.Refusal{Reason: refusals.ReasonSecret, Text: "the token is wrong", Advice: newToken}
	case !member.IsJoiner(in.Joiner):
		return &member.Refusal{Reason: refusals.ReasonForm, Text: "the request has no name of a kthwd join, to which the token could be bound", Advice: "use kthwd join, of the version of the other controllers: " + m.version}
	case !j.Valid || j.Outlived(time.Now()):
		return &member.Refusal{Reason: refusals.ReasonExpired, Text: "the token has expired", Advice: newToken}
	case fits != nil:
		if refusal, ok := errors.AsType[*member.Refusal](fits); ok {
			refusal.Reason = refusals.ReasonVersion
		}
		return fits
	case !in.KnowsEtcdCA && pki.StageOf(m.layout) != pki.StageShared:
		return &member.Refusal{Reason: refusals.ReasonVersion, Text: fmt.Sprintf("the kthwd that wants to join, %.40q, is older than etcd's own CA, which this cluster has: etcd would refuse its certificate", in.Versions.Kthwd),
			Advice: "install the kthwd of the other controllers: " + m.version}
	case !j.MayComeFrom(in.From):
		return &member.Refusal{Reason: refusals.ReasonAddress, Source: j.Source(), Text: fmt.Sprintf("the token is for %s at %s, and this request comes from %s", j.Name, j.Source(), refusals.Host(in.From)),
			Advice: fmt.Sprintf("if that is the right machine: kthwd member add %s %s --from=%s; if not, somebody else has the token: kthwd member remove %[1]s", j.Name, j.Address, refusals.Host(in.From))}
	case j.Joiner != "" && j.Joiner != in.Joiner:
		return &member.Refusal{Reason: refusals.ReasonUsed, Text: fmt.Sprintf("the token was used already: %s is being added", j.Name),
			Advice: fmt.Sprintf("if that was not meant: kthwd member remove %s on a controller, then kthwd member add %[1]s %s", j.Name, j.Address)}
	case j.Holder != "" && j.Holder != in.Joiner:
		return &member.Refusal{Reason: refusals.ReasonUsed, Text: fmt.Sprintf("the token was used already, by another kthwd join than this one: the files for %s are given once", j.Name),
			Advice: fmt.Sprintf("go on in the data directory where it was used first, or kthwd member add %s %s for a new token; if nobody has used it, somebody else has the cluster's keys", j.Name, j.Address)}
	}
	return nil
}

// giveFiles handles the joiner's first request: it returns the files and settings that a
// controller needs. From then on the token works for that joiner only.
func (m *Members) giveFiles(ctx context.Context, in member.Request) (member.Files, error) {
	var f member.Files
	client, server, done, err := m.client()
	if err != nil {
		return f, err
	}
	defer done()
	j, err := m.joinOf(ctx, client, in)
	if err != nil {
		return f, err
	}
	shared, err := pki.Share(m.layout, m.ownServers(), j.CAKey)
	if err != nil {
		return f, err
	}
	if err := m.issueFor(j, in, shared); err != nil {
		return f, err
	}
	if err := m.bindToken(ctx, client, j, in); err != nil {
		return f, err
	}
	m.log.Warn("files given to a controller that joins", "name", j.Name, "address", j.Address, "from", in.From, "ca-key", j.CAKey)
	return member.Files{Name: j.Name, Address: j.Address, Settings: m.settings(), Admin: shared.Admin, Files: shared.Files, Peers: m.peersInReach(server), Now: time.Now()}, nil
}

// bindToken binds the token to the joiner, unless it is bound already.
func (m *Members) bindToken(ctx context.Context, client *clientv3.Client, j joins.Join, in member.Request) error {
	if j.Holder != "" {
		return nil // joinOf has compared it with the joiner
	}
	key, err := m.sealKey()
	if err != nil {
		return err
	}
	j.Holder = in.Joiner
	done, err := j.Update(ctx, client, key)
	if err == nil && !done {
		return &member.Refusal{Text: "the token is being used by another kthwd join at this moment", Advice: newToken, Retry: true}
	}
	return err
}

// issueFor adds the certificates that the joiner needs, for its address, to the shared
// files.
func (m *Members) issueFor(j joins.Join, in member.Request, shared pki.Shared) error {
	var names []string
	if in.NeedsCertificate {
		names = append(names, pki.NameKubernetes)
	}
	if in.NeedsEtcdCertificate {
		names = append(names, pki.NameEtcd)
	}
	issued, err := pki.IssueController(m.layout, []string{j.Address}, names...)
	if errors.Is(err, pki.ErrNoCAKey) {
		return &member.Refusal{Text: fmt.Sprintf("%s cannot issue the certificates of %s at %s: %v", m.cfg.Name, j.Name, j.Address, err),
			Advice: fmt.Sprintf("where the key is: kthwd pki controller %s %s --data-dir=DIR; copy the files that it makes into the new data directory, then join again", j.Name, j.Address)}
	}
	for name, data := range issued.Files {
		shared.Files[name] = data
	}
	return err
}

// ownServers returns the URLs of this controller's API server.
func (m *Members) ownServers() []string {
	return []string{m.cfg.LocalServer(), "https://" + net.JoinHostPort(m.cfg.AdvertiseAddress, strconv.Itoa(m.cfg.SecurePort))}
}

// settings returns the settings that all controllers of the cluster share.
func (m *Members) settings() member.Settings {
	s := member.Settings{
		ServiceClusterIPRange: m.cfg.ServiceClusterIPRange, ClusterCIDR: m.cfg.ClusterCIDR, SecurePort: m.cfg.SecurePort,
		EtcdClientPort: m.cfg.EtcdClientPort, EtcdPeerPort: m.cfg.EtcdPeerPort, JoinPort: m.cfg.JoinPort, Profile: m.cfg.Profile,
	}
	for _, a := range []struct {
		key  string
		args []string
	}{
		{"etcd-arg", m.cfg.EtcdArgs}, {"kube-apiserver-arg", m.cfg.APIServerArgs},
		{"kube-controller-manager-arg", m.cfg.ControllerManagerArgs}, {"kube-scheduler-arg", m.cfg.SchedulerArgs},
	} {
		for _, arg := range a.args {
			key, _ := config.SplitArg(arg) // a value may be secret
			s.Arguments = append(s.Arguments, a.key+"="+key)
		}
	}
	return s
}

// Describe implements prometheus.Collector.
func (m *Members) Describe(ch chan<- *prometheus.Desc) { m.refused.Total.Describe(ch) }

// Collect implements prometheus.Collector.
func (m *Members) Collect(ch chan<- prometheus.Metric) { m.refused.Total.Collect(ch) }
