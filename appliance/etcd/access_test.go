package etcd

import (
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"kthwd/appliance/etcd/embedded"
	"kthwd/appliance/etcd/requests"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/test/kthwtest"
)

// Both ports tell controllers by their names, whichever CA etcd trusts. Before, a CA without a
// certificate in common with the cluster's meant no names: the same key under a renewed
// certificate, or a CA of a whole company, opened etcd to all that it had signed.
func TestNamesWhateverTheCA(t *testing.T) {
	var dirs [2]pki.Layout
	for i := range dirs {
		dirs[i] = pki.Layout{Dir: filepath.Join(t.TempDir(), "data")}
		if _, err := pki.Ensure(dirs[i], pki.Spec{Local: []string{"127.0.0.1"}, Server: "https://127.0.0.1:6443"}); err != nil {
			t.Fatal(err)
		}
	}
	l, controllers := dirs[0], []string{"kubernetes"}
	for _, c := range []struct {
		name, cert, ca string
		users          []program.Arg
		client, peer   []string
	}{
		{name: "etcd's own CA", cert: pki.NameEtcd, ca: l.EtcdCA(), client: controllers, peer: controllers},
		{name: "one CA", cert: pki.NameKubernetes, ca: l.CA(), client: controllers, peer: controllers},
		{name: "another CA", cert: pki.NameEtcd, ca: dirs[1].CA(), client: controllers, peer: controllers},
		{name: "another CA, named by the user", cert: pki.NameEtcd, ca: dirs[1].CA(), users: []program.Arg{{Key: "peer-cert-allowed-cn", Value: "c0,c1"}}, client: controllers, peer: []string{"c0", "c1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := New(Config{Log: slog.New(slog.DiscardHandler), Args: append([]program.Arg{
				{Key: "name", Value: "c0"}, {Key: "data-dir", Value: t.TempDir()},
				{Key: "listen-client-urls", Value: "https://127.0.0.1:1"}, {Key: "listen-peer-urls", Value: "https://127.0.0.1:2"},
				{Key: "advertise-client-urls", Value: "https://127.0.0.1:1"}, {Key: "initial-advertise-peer-urls", Value: "https://127.0.0.1:2"}, {Key: "initial-cluster", Value: "c0=https://127.0.0.1:2"},
				{Key: "cert-file", Value: l.Cert(c.cert)}, {Key: "key-file", Value: l.Key(c.cert)}, {Key: "trusted-ca-file", Value: c.ca}, {Key: "client-cert-auth", Value: "true"},
				{Key: "peer-cert-file", Value: l.Cert(c.cert)}, {Key: "peer-key-file", Value: l.Key(c.cert)}, {Key: "peer-trusted-ca-file", Value: c.ca}, {Key: "peer-client-cert-auth", Value: "true"},
			}, c.users...)})
			if err != nil {
				t.Fatal(err)
			}
			if err := e.AdmitControllers(); err != nil {
				t.Fatal(err)
			}
			if got := e.cfg.ClientTLSInfo.AllowedCNs; !slices.Equal(got, c.client) {
				t.Errorf("the client port accepts %v, want %v", got, c.client)
			}
			if got := e.PeerNames().CommonNames; !slices.Equal(got, c.peer) {
				t.Errorf("the peer port accepts %v, want %v", got, c.peer)
			}
		})
	}
}

// A leader that is no member counts as none, also in what etcd's maintenance API says: a client of
// the peer port could claim to lead.
func TestLeaderThatIsNoMember(t *testing.T) {
	o, err := embedded.OpenOffline(t.Context(), "c0", t.TempDir(), true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	config := o.Config()
	e := &Member{cfg: &config, server: o.Etcd, log: slog.New(slog.DiscardHandler), requests: requests.New()}
	const forger = 0xdead
	self := o.Server.MemberID()
	if view.LeaderOf(o.Etcd) != self || !e.Member().Leader {
		t.Fatal("a member that is alone does not lead")
	}
	seen := 0
	kthwtest.WaitFor(t, "the forger to count as the leader in etcd", time.Minute, func() error {
		heartbeat := &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: proto.Uint64(forger), To: proto.Uint64(uint64(self)), Term: proto.Uint64(o.Server.Term() + 1)}
		if err := o.Server.Process(t.Context(), heartbeat); err != nil {
			return err
		}
		if o.Server.Leader() != forger {
			return errors.New("it does not yet")
		}
		leader, member := view.LeaderOf(o.Etcd), e.Member()
		answer, err := e.StatusResponse()
		if err != nil || o.Server.Leader() != forger { // this member has been elected again meanwhile
			return errors.Join(err, errors.New("it is over again"))
		}
		seen++
		if leader != 0 || answer.Leader != 0 || member.Leader {
			t.Errorf("LeaderOf is %x, the answer to a status request has %x, this member leads: %v; want no leader", uint64(leader), answer.Leader, member.Leader)
		}
		return nil
	})
	if seen == 0 {
		t.Error("nothing was compared")
	}
}
