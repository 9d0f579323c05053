package users

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"k8s.io/utils/lru"

	"kthwd/appliance/refused"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

const (
	within     = 5 * time.Second // for one record
	seenBuffer = 4096            // certificates that wait for their record; all nodes come at once
	seenKnown  = 4096            // serial numbers whose record was written
	keptOfNode = 100             // records of a node, which gets as many certificates as it asks for
	pruneEvery = 10 * time.Minute
	pruneBatch = 50
	pruneAfter = time.Hour // after the end of a certificate; clocks differ
	triedFor   = time.Hour // a finding about an attempt
)

const kindTried = "revoked_certificate_used"

// Config configures a Ledger.
type Config struct {
	Etcd func() *embed.Etcd // nil while it does not run
	Log  *slog.Logger
}

// Ledger is the part of the ledger that runs in a controller. Make one with New.
type Ledger struct {
	Revoked *refused.List // the revoked certificates

	cfg      Config
	seen     chan *x509.Certificate
	known    *lru.Cache // serial numbers
	recorded *prometheus.CounterVec
	refusals prometheus.Counter
	revoked  *prometheus.Desc

	mu    sync.Mutex
	tried map[string]*attempts // by serial number
}

// attempts are those with one revoked certificate.
type attempts struct {
	user, address string // the last one's
	count         int
	first, last   time.Time
}

// New makes a Ledger. It does no I/O.
func New(cfg Config) *Ledger {
	l := &Ledger{
		Revoked: newRevoked(), cfg: cfg, seen: make(chan *x509.Certificate, seenBuffer), known: lru.New(seenKnown), tried: map[string]*attempts{},
		recorded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kthwd_certificates_recorded_total", Help: "Certificates that this controller has recorded in the ledger: because of a request, or when it was used for the first time.",
		}, []string{"why"}),
		refusals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "kthwd_revoked_certificate_requests_total", Help: "Requests that this controller has refused because the certificate of the client was revoked.",
		}),
		revoked: prometheus.NewDesc("kthwd_revocations", "Users and single certificates that are revoked, as this controller knows them.", nil, nil),
	}
	for _, why := range []string{"request", "use"} {
		l.recorded.WithLabelValues(why)
	}
	return l
}

// Describe implements prometheus.Collector.
func (l *Ledger) Describe(ch chan<- *prometheus.Desc) {
	l.recorded.Describe(ch)
	l.refusals.Describe(ch)
	ch <- l.revoked
}

// Collect implements prometheus.Collector.
func (l *Ledger) Collect(ch chan<- prometheus.Metric) {
	l.recorded.Collect(ch)
	l.refusals.Collect(ch)
	ch <- prometheus.MustNewConstMetric(l.revoked, prometheus.GaugeValue, float64(l.Revoked.Len()))
}

// Follow follows the revocations until ctx ends, which is not before the API server has gone.
func (l *Ledger) Follow(ctx context.Context) { l.Revoked.Follow(ctx, l.cfg.Etcd) }

// Run records certificates that are used, and deletes old records, until ctx ends.
func (l *Ledger) Run(ctx context.Context) {
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	for {
		select {
		case cert := <-l.seen:
			if err := l.record(ctx, RecordOf(cert), "use"); err != nil && ctx.Err() == nil {
				l.cfg.Log.Warn("a certificate is not in the ledger yet", "user", cert.Subject.CommonName, "serial", Serial(cert), "err", err)
				supervise.Sleep(ctx, time.Second)
				l.Seen(cert) // its connection may last for weeks
				continue
			}
			l.known.Add(Serial(cert), nil)
		case <-prune.C:
			if err := l.prune(ctx, time.Now()); err != nil && ctx.Err() == nil {
				l.cfg.Log.Debug("old records of certificates are not deleted", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// Seen notes a certificate that the API server has accepted. It does not block.
func (l *Ledger) Seen(cert *x509.Certificate) {
	if _, ok := l.known.Get(Serial(cert)); ok {
		return
	}
	select {
	case l.seen <- cert:
	default: // it is seen with its next connection
	}
}

// Signed records a certificate that was signed for a request, before the API server stores it.
func (l *Ledger) Signed(ctx context.Context, c Certificate) error {
	return l.record(ctx, c, "request")
}

func (l *Ledger) record(ctx context.Context, c Certificate, why string) error {
	return l.with(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		err := Record(ctx, etcd, c)
		if err == nil {
			l.recorded.WithLabelValues(why).Inc()
		}
		return err
	})
}

func (l *Ledger) with(ctx context.Context, do func(context.Context, *clientv3.Client) error) error {
	server := l.cfg.Etcd()
	if server == nil {
		return errors.New("etcd does not run")
	}
	client := v3client.New(server.Server)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return do(ctx, client)
}

// prune deletes records of certificates and revocations that are over. The leader does it.
func (l *Ledger) prune(ctx context.Context, now time.Time) error {
	if server := l.cfg.Etcd(); server == nil || server.Server.Leader() != server.Server.MemberID() {
		return nil
	}
	return l.with(ctx, func(ctx context.Context, etcd *clientv3.Client) error { return prune(ctx, etcd, now) })
}

func prune(ctx context.Context, etcd *clientv3.Client, now time.Time) error {
	certificates, err := read[Certificate](ctx, etcd, ledgerPrefix)
	if err != nil {
		return err
	}
	revoked, err := read[revocation](ctx, etcd, revokedPrefix)
	if err != nil {
		return err
	}
	old := oldRecords(certificates, now)
	for key, v := range revoked {
		if !v.Until.IsZero() && now.After(v.Until.Add(pruneAfter)) {
			old = append(old, revokedPrefix+key)
		}
	}
	for batch := range slices.Chunk(old, pruneBatch) {
		var deletes []clientv3.Op
		for _, key := range batch {
			deletes = append(deletes, clientv3.OpDelete(key))
		}
		if _, err := etcd.Txn(ctx).Then(deletes...).Commit(); err != nil {
			return err
		}
	}
	return nil
}

// oldRecords returns the keys of the certificates that have ended, and of each node's but
// the newest.
func oldRecords(certificates map[string]Certificate, now time.Time) (keys []string) {
	nodes := map[string][]string{} // serial numbers, by user
	for serial, c := range certificates {
		switch {
		case now.After(c.NotAfter.Add(pruneAfter)):
			keys = append(keys, ledgerPrefix+serial)
		case strings.HasPrefix(c.User, nodeUser):
			nodes[c.User] = append(nodes[c.User], serial)
		}
	}
	for _, serials := range nodes {
		slices.SortFunc(serials, func(a, b string) int { return certificates[b].At.Compare(certificates[a].At) })
		for _, serial := range serials[min(keptOfNode, len(serials)):] {
			keys = append(keys, ledgerPrefix+serial)
		}
	}
	return keys
}

// Tried notes a request that was refused because of its certificate, if that was revoked. It does
// not block.
func (l *Ledger) Tried(cert *x509.Certificate, address string, why error) {
	if !errors.Is(why, errRevoked) {
		return
	}
	if host, _, err := net.SplitHostPort(address); err == nil {
		address = host
	}
	l.refusals.Inc()
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.tried[Serial(cert)]
	if a == nil {
		l.forgetTried(now)
		a = &attempts{user: cert.Subject.CommonName, first: now}
		l.tried[Serial(cert)] = a
		l.cfg.Log.Warn("revoked certificate refused", "user", a.user, "serial", Serial(cert), "address", address)
	}
	a.count, a.last, a.address = a.count+1, now, address
}

// forgetTried drops attempts that are no longer told of.
func (l *Ledger) forgetTried(now time.Time) {
	for serial, a := range l.tried {
		if now.Sub(a.last) > triedFor {
			delete(l.tried, serial)
		}
	}
}

// Findings returns the revoked certificates that were used in the last hour. It does not block.
func (l *Ledger) Findings() []status.Finding {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetTried(time.Now())
	var serial string
	var last *attempts
	for s, a := range l.tried {
		if last == nil || a.last.After(last.last) {
			serial, last = s, a
		}
	}
	if last == nil {
		return nil
	}
	f := status.Finding{Health: status.Healthy, Kind: kindTried, Since: last.first,
		Text: fmt.Sprintf("a client at %s uses the revoked certificate %s of %s; requests refused: %d", last.address, serial, last.user, last.count),
		Do:   "find out who uses it; a user that may come again needs a new one: kthwd kubeconfig create"}
	if more := len(l.tried) - 1; more > 0 {
		f.Text += fmt.Sprintf("; and %d more certificates", more)
	}
	return []status.Finding{f}
}
