// Package etcdtest starts a lone etcd in the process of a test.
package etcdtest

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

// Start starts a member c0 that no other one can reach, and waits until it serves. The test's end
// closes it. fsync is for benchmarks: without it the disk does not count.
func Start(t testing.TB, fsync bool) *embed.Etcd {
	t.Helper()
	dir, err := os.MkdirTemp("", "kthwd") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.LogLevel = "c0", filepath.Join(dir, "etcd"), "fatal"
	cfg.ListenPeerUrls, cfg.UnsafeNoFsync = nil, !fsync
	cfg.ListenClientUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(dir, "s")}}
	cfg.InitialCluster = cfg.InitialClusterFromName("c0")
	cfg.TickMs, cfg.ElectionMs = 20, 200
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	<-server.Server.ReadyNotify()
	return server
}

// Client is a client of the server in the process. The test's end closes it.
func Client(t testing.TB, server *embed.Etcd) *clientv3.Client {
	t.Helper()
	client := v3client.New(server.Server)
	t.Cleanup(func() { client.Close() })
	return client
}
