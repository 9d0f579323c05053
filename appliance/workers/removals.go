package workers

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
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

// Removals knows the nodes that were removed. The zero value refuses all nodes until Load has
// succeeded.
type Removals struct {
	mu       sync.Mutex
	at       map[string]time.Time // by node; nil until loaded
	revision int64
	open     map[*removable]struct{}
}

// removable is a request in flight of a node.
type removable struct {
	cert *x509.Certificate
	end  context.CancelFunc
}

// Refuses returns an error if the certificate is one that a removed node had.
func (r *Removals) Refuses(cert *x509.Certificate) error {
	name := NodeOf(cert)
	if name == "" {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refuses(name, cert)
}

func (r *Removals) refuses(name string, cert *x509.Certificate) error {
	at, removed := r.at[name]
	switch {
	case r.at == nil:
		return errors.New("the removed nodes are not known yet")
	case removed && !cert.NotBefore.After(at):
		return fmt.Errorf("the node %s was removed on %s, and this certificate is from before", name, at.UTC().Format(time.RFC3339))
	}
	return nil
}

// During ends a request, by its context, when the node that sent it is removed. The caller
// calls done at the end of the request.
func (r *Removals) During(ctx context.Context, cert *x509.Certificate) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancel(ctx)
	o := &removable{cert, cancel}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil {
		r.open = map[*removable]struct{}{}
	}
	r.open[o] = struct{}{}
	return ctx, func() {
		cancel()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.open, o)
	}
}

// Load reads the removals, from a member with a quorum.
func (r *Removals) Load(ctx context.Context, server *embed.Etcd) error {
	client := v3client.New(server.Server)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	return r.load(ctx, client)
}

func (r *Removals) load(ctx context.Context, client *clientv3.Client) error {
	answer, err := client.Get(ctx, removedPrefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	all := map[string]time.Time{}
	for _, kv := range answer.Kvs {
		var v removal
		if json.Unmarshal(kv.Value, &v) != nil {
			v.At = time.Now() // somebody has removed it
		}
		all[strings.TrimPrefix(string(kv.Key), removedPrefix)] = v.At
	}
	r.use(all, answer.Header.Revision)
	return nil
}

// use replaces the removals, and ends the requests that they are about.
func (r *Removals) use(all map[string]time.Time, revision int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at, r.revision = all, revision
	for o := range r.open {
		if r.refuses(NodeOf(o.cert), o.cert) != nil {
			o.end()
		}
	}
}

// follow keeps the removals up to date until ctx ends.
func (r *Removals) follow(ctx context.Context, member func() *embed.Etcd) {
	for ctx.Err() == nil {
		if server := member(); server != nil {
			client := v3client.New(server.Server)
			r.followOnce(ctx, client)
			client.Close()
		}
		supervise.Sleep(ctx, followPause)
	}
}

func (r *Removals) followOnce(ctx context.Context, client *clientv3.Client) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := r.load(ctx, client); err != nil {
		return // what is known stays
	}
	for change := range client.Watch(ctx, removedPrefix, clientv3.WithPrefix(), clientv3.WithRev(r.revision+1)) {
		if change.Err() != nil || r.load(ctx, client) != nil {
			return
		}
	}
}
