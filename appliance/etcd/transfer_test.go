package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/etcd/leadership"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/test/kthwtest"
)

// testMember is an etcd member in the test's process, with a client on its socket.
type testMember struct {
	*Member
	client *clientv3.Client
}

// threeMembers starts a cluster on loopback. It stops at the end of the test.
func threeMembers(t *testing.T) []*testMember {
	t.Helper()
	dir := t.TempDir()
	var urls, cluster []string
	var closers []net.Listener // open until all ports are known
	for i := range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		urls = append(urls, "http://"+l.Addr().String())
		cluster = append(cluster, fmt.Sprintf("m%d=%s", i, urls[i]))
		closers = append(closers, l)
	}
	for _, l := range closers {
		l.Close()
	}
	var all []*testMember
	group := supervise.New(slog.New(slog.DiscardHandler))
	for i, url := range urls {
		socket := "unix://" + filepath.Join(dir, fmt.Sprintf("s%d", i))
		e, err := New(Config{Log: slog.New(slog.DiscardHandler), Args: []program.Arg{
			{Key: "name", Value: fmt.Sprintf("m%d", i)}, {Key: "data-dir", Value: filepath.Join(dir, fmt.Sprintf("m%d", i))},
			{Key: "listen-peer-urls", Value: url}, {Key: "initial-advertise-peer-urls", Value: url},
			{Key: "listen-client-urls", Value: socket}, {Key: "advertise-client-urls", Value: url},
			{Key: "initial-cluster", Value: strings.Join(cluster, ",")},
		}})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &testMember{Member: e})
		group.Add(renamed{e, e.cfg.Name})
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- group.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("the members' end: %v", err)
		}
	})
	for ready := false; !ready; {
		changed := group.Changed()
		if ready, _ = group.Ready(); !ready {
			select {
			case <-changed:
			case <-time.After(time.Minute):
				t.Fatal("no quorum within a minute")
			}
		}
	}
	for _, m := range all { // before the members, which would otherwise log errors
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.cfg.ListenClientUrls[0].String()}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		m.client = client
	}
	return all
}

// renamed is one of several components of the same kind in a group.
type renamed struct {
	supervise.Component
	name string
}

func (r renamed) Name() string { return r.name }

// leader returns the member that leads.
func leader(t *testing.T, all []*testMember) (found *testMember) {
	t.Helper()
	kthwtest.WaitFor(t, "a leader", time.Minute, func() error {
		for _, m := range all {
			if s := m.server.Server; s.Lead() == uint64(s.MemberID()) {
				found = m
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	return found
}

// Without the gates, etcd drops some of these writes each time.
func TestNoWriteFailsWhileLeadershipMoves(t *testing.T) {
	all := threeMembers(t)
	var writes, longest atomic.Int64
	var writers sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	for i, m := range all {
		for w := range 8 {
			writers.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					key := fmt.Sprintf("w/%d/%d/%d", i, w, n)
					begun := time.Now()
					put, err := m.client.Txn(context.Background()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "")).Commit()
					if err != nil || !put.Succeeded {
						t.Errorf("a write through m%d: %v, %+v", i, err, put)
					}
					if writes.Add(1); int64(time.Since(begun)) > longest.Load() {
						longest.Store(int64(time.Since(begun)))
					}
				}
			})
		}
	}
	for range 10 {
		before := writes.Load()
		was := leader(t, all)
		was.TransferLeadership(t.Context(), was.server, slog.LevelWarn)
		if now := leader(t, all); now == was {
			t.Errorf("%s leads still", was.cfg.Name)
		}
		kthwtest.WaitFor(t, "all to write again", time.Minute, func() error {
			if n := writes.Load() - before; n < 100 {
				return fmt.Errorf("%d writes since", n)
			}
			return nil
		})
	}
	stop()
	writers.Wait()
	t.Logf("%d writes, the slowest took %v", writes.Load(), time.Duration(longest.Load()).Round(time.Millisecond))
	left, err := all[0].client.Get(t.Context(), leadership.Key, clientv3.WithPrefix())
	if err != nil || left.Count != 0 {
		t.Errorf("left in etcd: %v, %v", left, err)
	}
}

// If leadership does not move, writes continue after a while.
func TestHeldWritesGoOn(t *testing.T) {
	m := threeMembers(t)[0]
	opened := make(chan struct{})
	m.transfers.Hold(t.Context(), m.server, opened)
	select {
	case <-opened:
		t.Error("the gate is open already")
	default:
	}
	if _, err := m.client.Put(t.Context(), "held", ""); err != nil {
		t.Error(err)
	}
	<-opened
}
