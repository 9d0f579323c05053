package etcd

import (
	"context"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/etcd/peers"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/supervise"
)

// strangerPoll is how often a member without a leader checks its peers' certificates.
const strangerPoll = 5 * time.Second

// lookForStrangers finds the peers with a certificate of another CA, or with a name that
// is not accepted, while this member has no leader. Otherwise it would wait for them
// forever without a visible reason: etcd's transport logs each failed connection at level
// debug only. It blocks until ctx ends.
func (e *Member) lookForStrangers(ctx context.Context, server *embed.Etcd) {
	tls, err := e.cfg.PeerTLSInfo.ClientConfig()
	if err != nil || e.cfg.PeerTLSInfo.Empty() {
		return
	}
	for logged := ""; ctx.Err() == nil; supervise.Sleep(ctx, strangerPoll) {
		var found []string
		if view.LeaderOf(server) == 0 {
			found = peers.Strangers(ctx, e.cfg, tls, server)
		}
		text := strings.Join(found, "; ")
		switch {
		case ctx.Err() != nil:
			return
		case text == "":
			e.strangers.Store(nil)
		default:
			e.strangers.Store(&text)
		}
		if text != logged && text != "" {
			e.log.Warn("a controller of another CA, or with another name: it and this one do not speak with each other", "err", text,
				"hint", "all controllers need the same CA of etcd, etcd-ca.pem or ca.pem, and certificates of it with the same name; kthwd pki split-etcd-ca --plan shows which CA this one uses")
		}
		logged = text
	}
}
