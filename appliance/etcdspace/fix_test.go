package etcdspace

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"kthwd/test/kthwtest"
)

// A member that needs long for its compaction is defragmented after it. The run is asked for on
// the other one, whose compaction takes no time.
func TestFixWaitsForCompaction(t *testing.T) {
	c, slow := twoMembers(t)
	value := strings.Repeat("x", 32<<10)
	const keys = 200
	for i := range keys {
		key := fmt.Sprintf("/registry/configmaps/fill/%d", i)
		if _, err := c.local.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
		if i%4 != 0 {
			if _, err := c.local.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
	p, err := c.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Fix(t.Context(), p, func(step string) { t.Log(step) })
	if err != nil {
		t.Fatal(err)
	}
	// Only after its own compaction a member counts what is free.
	for range 2 {
		if err := compact(t.Context(), slow, f.Compacted); err != nil {
			t.Fatal(err)
		}
	}
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, done := range f.Members {
		if m := s.member(done.Name); done.Took == 0 || 4*m.Free() > m.Size {
			t.Errorf("%s: %d of %d bytes are free after %+v", m.Name, m.Free(), m.Size, done)
		}
	}
}

// twoMembers runs a cluster of etcd, and returns it with a client of the member that deletes
// little at a time; the run of a test begins at the other one.
func twoMembers(t *testing.T) (*Cluster, *clientv3.Client) {
	t.Helper()
	ports := kthwtest.FreePorts(t, "127.0.0.1")
	at := func(port int) url.URL { return url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)} }
	peers := []url.URL{at(ports.EtcdPeer), at(ports.Health)}
	clients := []url.URL{at(ports.EtcdClient), at(ports.Secure)}
	var members []*embed.Etcd
	for i, name := range []string{"fast", "slow"} {
		cfg := embed.NewConfig()
		cfg.Name, cfg.Dir = name, t.TempDir()
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peers[i]}, []url.URL{peers[i]}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{clients[i]}, []url.URL{clients[i]}
		cfg.InitialCluster = fmt.Sprintf("fast=%s,slow=%s", peers[0].String(), peers[1].String())
		cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
		if name == "slow" {
			cfg.CompactionBatchLimit, cfg.CompactionSleepInterval = 25, time.Second/4
		}
		e, err := embed.StartEtcd(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.Close)
		members = append(members, e)
	}
	for i, e := range members {
		select {
		case <-e.Server.ReadyNotify():
		case err := <-e.Err():
			t.Fatalf("member %d: %v", i, err)
		case <-time.After(kthwtest.Soon):
			t.Fatalf("member %d is not ready", i)
		}
	}
	connect := func(at url.URL) *clientv3.Client {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{at.String()}, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	c := &Cluster{local: connect(clients[0]), remote: map[uint64]*clientv3.Client{}}
	t.Cleanup(c.Close)
	slow := connect(clients[1])
	t.Cleanup(func() { slow.Close() })
	return c, slow
}
