// Package tokenkeys tells who still comes with a service account token that the API server
// refuses because of its key: of a key pair that was replaced, or of another issuer.
//
//	w := tokenkeys.New(tokenkeys.Config{Files: …, Issuers: …})
//	w.Record(ctx, server)          // after the first quorum, before the API server
//	w.Refused(token, remoteAddress) // for each token that was refused
//	w.Accepted(token, user, address) // for each token that was accepted
//	w.Findings()                   // for each report; never blocks
//
// The public keys that the cluster has had are recorded in etcd. With them Refused verifies
// a token's signature, so nobody can pretend to be a client with an old token. A token is
// neither kept nor logged; of its key there is the key id, which every cluster publishes at
// /openid/v1/jwks.
package tokenkeys

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"gopkg.in/go-jose/go-jose.v2/jwt"

	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

const kindRefused = "tokens_refused"

// Reasons for which a token is refused, as the metric has them.
const (
	ReplacedKey = "replaced_key" // signed with a key that this cluster had
	OtherIssuer = "other_issuer" // signed with a key that is accepted, for an issuer that is not
	UnknownKey  = "unknown_key"  // a key that this cluster never had; anybody can send such a token
)

const (
	quiet      = 10 * time.Minute // after the last refusal, the finding ends
	clientsMax = 32               // that are kept for one key
)

// Config configures a Watch.
type Config struct {
	Files      []string // public keys of tokens that are accepted (--service-account-key-file)
	Issuers    []string // that are accepted
	Kubeconfig string   // of the administrator, for commands
	Log        *slog.Logger
}

// Watch counts refused tokens. Make one with New; all methods are safe for concurrent use.
type Watch struct {
	cfg   Config
	count *prometheus.CounterVec

	mu   sync.Mutex
	keys map[string]key       // by key id; none before Record
	rows map[rowName]*refusal // by what is wrong

	accepted *prometheus.CounterVec

	useMu   sync.Mutex
	watched usage
	headers map[string]string // key ids, by the first part of a token
}

// rowName tells refusals apart.
type rowName struct{ reason, kid, issuer string }

// refusal is a row of refused tokens with the same fault.
type refusal struct {
	n           int
	since, last time.Time
	clients     map[string]string // address by subject, both of the newest
	newest      string            // subject
	address     string            // of the newest
}

// New makes a Watch. It does no I/O.
func New(cfg Config) *Watch {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Watch{cfg: cfg, rows: map[rowName]*refusal{}, headers: map[string]string{}, accepted: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kthwd_accepted_tokens_total",
		Help: "Service account tokens accepted, by the key id in their header: during a rotation those of the old key, too.",
	}, []string{"kid"}), count: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kthwd_refused_tokens_total",
		Help: "Service account tokens refused because of their key or issuer, by the key id in their header; empty for a key that the cluster never had.",
	}, []string{"reason", "kid"})}
}

// claims are those of a token that matter here.
type claims struct {
	Issuer  string           `json:"iss"`
	Subject string           `json:"sub"`
	Expiry  *jwt.NumericDate `json:"exp"`
}

// Refused counts a token that the API server has just refused, if its key or issuer is the
// reason. address is the client's, HOST:PORT.
func (w *Watch) Refused(token, address string) {
	parsed, err := jwt.ParseSigned(token)
	if err != nil {
		return
	}
	row, c, ok := w.judge(parsed, time.Now())
	if !ok {
		return
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	w.add(row, c.Subject, host, time.Now())
}

// judge finds the fault of a token. ok is false if its key and issuer are not the reason.
func (w *Watch) judge(token *jwt.JSONWebToken, now time.Time) (row rowName, c claims, ok bool) {
	kid := ""
	for _, h := range token.Headers {
		kid = h.KeyID
	}
	w.mu.Lock()
	known, has := w.keys[kid]
	recorded := w.keys != nil
	w.mu.Unlock()
	if !has {
		// Without its key nothing in the token can be believed.
		unverified := claims{}
		if err := token.UnsafeClaimsWithoutVerification(&unverified); err != nil || !recorded || !slices.Contains(w.cfg.Issuers, unverified.Issuer) {
			return row, c, false
		}
		return rowName{reason: UnknownKey}, claims{}, true
	}
	if err := token.Claims(known.public, &c); err != nil || c.Expiry != nil && c.Expiry.Time().Before(now) {
		return row, c, false
	}
	switch {
	case !known.Until.IsZero():
		return rowName{reason: ReplacedKey, kid: kid}, c, true
	case !slices.Contains(w.cfg.Issuers, c.Issuer):
		return rowName{reason: OtherIssuer, kid: kid, issuer: c.Issuer}, c, true
	}
	return row, c, false
}

func (w *Watch) add(name rowName, subject, address string, now time.Time) {
	w.count.WithLabelValues(name.reason, name.kid).Inc()
	w.mu.Lock()
	defer w.mu.Unlock()
	row := w.rows[name]
	if row == nil || now.Sub(row.last) > quiet {
		row = &refusal{since: now, clients: map[string]string{}}
		w.rows[name] = row
		w.cfg.Log.Warn("service account tokens are refused", "reason", name.reason, "kid", name.kid, "of", subject, "from", address)
	}
	row.n, row.last, row.newest, row.address = row.n+1, now, subject, address
	if _, known := row.clients[subject]; known || len(row.clients) < clientsMax {
		row.clients[subject] = address
	}
}

// Findings returns a finding for each fault of the last minutes. It does not block.
func (w *Watch) Findings() (all []status.Finding) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, row := range w.rows {
		if now.Sub(row.last) > quiet {
			delete(w.rows, name)
			continue
		}
		f := w.finding(name, row)
		f.Kind, f.Since = kindRefused, row.since
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b status.Finding) int { return strings.Compare(a.Text, b.Text) })
	return all
}

func (w *Watch) finding(name rowName, row *refusal) status.Finding {
	files := strings.Join(w.cfg.Files, ", ")
	switch name.reason {
	case ReplacedKey:
		until := w.keys[name.kid].Until.UTC().Format("2006-01-02 15:04 UTC")
		return status.Finding{
			Health: status.Degraded,
			Text:   fmt.Sprintf("tokens from before %s are refused, for their key %s is in no file since then: %d, of %s", until, name.kid, row.n, row.who()),
			Do:     w.pods(row.newest) + "; restart these pods, and they get new tokens; or, unless kthwd pki service-account drop has taken it away, append the old public key to " + files + " and restart kthwd",
		}
	case OtherIssuer:
		const flag = "--kube-apiserver-arg=service-account-issuer="
		accepted := make([]string, len(w.cfg.Issuers))
		for i, issuer := range w.cfg.Issuers {
			accepted[i] = flag + issuer
		}
		return status.Finding{
			Health: status.Degraded,
			Text:   fmt.Sprintf("tokens of the issuer %s are refused, for the API server accepts %s only: %d, of %s", name.issuer, strings.Join(w.cfg.Issuers, ", "), row.n, row.who()),
			Do:     "accept both: " + strings.Join(append(accepted, flag+name.issuer), " ") + "; or restart the pods, and they get new tokens: " + w.pods(row.newest),
		}
	}
	return status.Finding{
		Health: status.Healthy, // anybody can send such a token
		Text:   fmt.Sprintf("tokens of a key that this cluster never had are refused: %d, the newest from %s", row.n, row.address),
		Do:     "look there for a client of another cluster; if it is one of this cluster, append its public key to " + files,
	}
}

// pods is the command that lists the pods of a service account.
func (w *Watch) pods(subject string) string {
	command := "kubectl --kubeconfig " + text.ShellWord(w.cfg.Kubeconfig) + " get pods "
	account, _ := strings.CutPrefix(subject, "system:serviceaccount:")
	namespace, name, ok := strings.Cut(account, ":")
	if !ok {
		return command + "--all-namespaces -o wide"
	}
	return command + "-n " + text.ShellWord(namespace) + " --field-selector " + text.ShellWord("spec.serviceAccountName="+name)
}

// who names the newest client, and says how many others there are.
func (r *refusal) who() string {
	said := fmt.Sprintf("%s at %s", r.newest, r.address)
	switch n := len(r.clients) - 1; {
	case n == 1:
		said += " and another account"
	case n > 1:
		said += fmt.Sprintf(" and %d other accounts", n)
	}
	return said
}

// Describe implements prometheus.Collector.
func (w *Watch) Describe(ch chan<- *prometheus.Desc) { w.count.Describe(ch); w.accepted.Describe(ch) }

// Collect implements prometheus.Collector.
func (w *Watch) Collect(ch chan<- prometheus.Metric) { w.count.Collect(ch); w.accepted.Collect(ch) }
