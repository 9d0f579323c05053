package etcdca

import (
	"context"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/datadir"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

// keyPoll is how often a controller without etcd-ca-key.pem looks for it.
const keyPoll = 2 * time.Second

// Run issues certificates for the other controllers while etcd-ca-key.pem is here, until
// ctx ends. Once the move is over, nobody asks.
func (m *Mover) Run(ctx context.Context) {
	for m.started != pki.StageOwn && ctx.Err() == nil {
		if server := m.etcd.Running(); server != nil && m.mayIssue() {
			client := v3client.New(server.Server)
			if err := m.follow(ctx, client); err != nil && ctx.Err() == nil {
				m.log.Debug("requests for etcd.pem not followed", "err", err)
			}
			client.Close()
		}
		supervise.Sleep(ctx, keyPoll)
	}
}

// mayIssue reports whether this controller can answer requests.
func (m *Mover) mayIssue() bool {
	return datadir.Exists(m.layout.EtcdCAKey()) && pki.StageOf(m.layout) != pki.StageShared
}

// follow answers the requests that are there, and each that comes, until the key is taken
// away.
func (m *Mover) follow(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answer, err := client.Get(ctx, requestsPrefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	for _, kv := range answer.Kvs {
		m.answer(ctx, client, string(kv.Key), kv.Value, kv.ModRevision)
	}
	for change := range client.Watch(ctx, requestsPrefix, clientv3.WithPrefix(), clientv3.WithRev(answer.Header.Revision+1)) {
		if err := change.Err(); err != nil {
			return err
		}
		if !m.mayIssue() {
			return nil
		}
		for _, e := range change.Events {
			if e.Type == clientv3.EventTypePut {
				m.answer(ctx, client, string(e.Kv.Key), e.Kv.Value, e.Kv.ModRevision)
			}
		}
	}
	return ctx.Err()
}

// answer issues the certificate of one request, and reports one that it does not trust.
func (m *Mover) answer(ctx context.Context, client *clientv3.Client, key string, value []byte, revision int64) {
	r, err := parse(m.layout, key, value)
	if r.revision = revision; err == nil {
		err = m.sign(ctx, client, key, r)
	}
	if err != nil {
		m.log.Warn("no etcd.pem issued for a controller", "name", strings.TrimPrefix(key, requestsPrefix), "err", err)
	}
}

// kind is the kind of the finding.
const kind = "etcd_ca"

// Findings tells how far this controller has moved.
func (m *Mover) Findings() []status.Finding {
	if m.started == pki.StageOwn {
		return nil
	}
	stage := pki.StageOf(m.layout)
	f := status.Finding{Health: status.Healthy, Kind: kind, Do: "kthwd pki split-etcd-ca --plan --data-dir=" + text.ShellWord(m.layout.Dir)}
	switch {
	case stage != m.started:
		f.Text, f.Do = "etcd has other files than it has started with, on the way to a CA of its own", "systemctl restart kthwd-controller"
	case stage == pki.StageShared:
		f.Text = "etcd trusts the cluster's CA: whatever that CA signs for a controller's name has all rights on etcd"
	case stage == pki.StageTrust:
		f.Text = "etcd is moving to a CA of its own: this controller trusts both CAs, and shows a certificate of the cluster's"
	case stage == pki.StageUse:
		f.Text = "etcd is moving to a CA of its own: this controller shows a certificate of that, and still trusts the cluster's"
	}
	return []status.Finding{f}
}
