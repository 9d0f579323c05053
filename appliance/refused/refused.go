// Package refused keeps certificates from being accepted because of records in etcd, such as
// those of removed nodes. Kubernetes has no list of revoked certificates.
//
//	l := refused.New(refused.Config{…})
//	err := l.Load(ctx, member)     // before the first request
//	go l.Follow(ctx, running)
//	err = l.Refuses(cert)          // for each request
//	ctx, done := l.During(ctx, cert)
//
// A record counts on each controller as soon as its etcd member has it, also for requests in
// flight, and for as long as the record is there.
package refused

import (
	"context"
	"crypto/x509"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/supervise"
)

const (
	loadTimeout = 5 * time.Second
	followPause = 2 * time.Second
)

// Judge returns the reason why a certificate is refused, or nil.
type Judge func(cert *x509.Certificate) error

// Config configures a List.
type Config struct {
	Prefix string // of the records in etcd

	// Read makes the judgement from the records, by the rest of their keys.
	Read func(records map[string][]byte) Judge

	// Unread is the judgement before the records were read for the first time.
	Unread Judge

	// Concerns reports whether records can be about the certificate. Every other one is accepted.
	Concerns func(cert *x509.Certificate) bool
}

// List knows the records below one prefix. Make one with New.
type List struct {
	cfg Config

	mu       sync.Mutex
	judge    Judge
	revision int64
	count    int
	open     map[*request]struct{}
}

// request is one in flight.
type request struct {
	cert *x509.Certificate
	end  context.CancelFunc
}

// New makes a List. It does no I/O.
func New(c Config) *List {
	return &List{cfg: c, judge: c.Unread, open: map[*request]struct{}{}}
}

// Refuses returns the reason why a certificate is refused, or nil. It does not block.
func (l *List) Refuses(cert *x509.Certificate) error {
	if !l.cfg.Concerns(cert) {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.judge(cert)
}

// Len returns the number of records.
func (l *List) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// Known reports whether the records were read.
func (l *List) Known() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.revision > 0
}

// During ends a request, by its context, when the certificate of its client is refused from
// then on. The caller calls done at the end of the request.
func (l *List) During(ctx context.Context, cert *x509.Certificate) (_ context.Context, done func()) {
	if !l.cfg.Concerns(cert) {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &request{cert, cancel}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[r] = struct{}{}
	return ctx, func() {
		cancel()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.open, r)
	}
}

// Load reads the records, from a member with a quorum.
func (l *List) Load(ctx context.Context, server *embed.Etcd) error {
	client := v3client.New(server.Server)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	return l.load(ctx, client)
}

func (l *List) load(ctx context.Context, client *clientv3.Client) error {
	answer, err := client.Get(ctx, l.cfg.Prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	records := map[string][]byte{}
	for _, kv := range answer.Kvs {
		records[strings.TrimPrefix(string(kv.Key), l.cfg.Prefix)] = kv.Value
	}
	l.use(records, answer.Header.Revision)
	return nil
}

// use replaces older records, and ends the requests that these are about.
func (l *List) use(records map[string][]byte, revision int64) {
	judge := l.cfg.Read(records)
	l.mu.Lock()
	defer l.mu.Unlock()
	if revision < l.revision {
		return // Load and Follow read at the same time
	}
	l.judge, l.revision, l.count = judge, revision, len(records)
	for r := range l.open {
		if judge(r.cert) != nil {
			r.end()
		}
	}
}

// Follow keeps the records up to date until ctx ends.
func (l *List) Follow(ctx context.Context, member func() *embed.Etcd) {
	for ctx.Err() == nil {
		if server := member(); server != nil {
			client := v3client.New(server.Server)
			l.followOnce(ctx, client)
			client.Close()
		}
		supervise.Sleep(ctx, followPause)
	}
}

func (l *List) followOnce(ctx context.Context, client *clientv3.Client) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := l.load(ctx, client); err != nil {
		return // what is known stays
	}
	l.mu.Lock()
	next := l.revision + 1
	l.mu.Unlock()
	for change := range client.Watch(ctx, l.cfg.Prefix, clientv3.WithPrefix(), clientv3.WithRev(next)) {
		if change.Err() != nil || l.load(ctx, client) != nil {
			return
		}
	}
}
