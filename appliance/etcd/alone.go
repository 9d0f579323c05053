package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/etcdline"
	"kthwd/appliance/supervise"
	"kthwd/appliance/upstream"
)

const recoverLimit = 2 * time.Minute // for the new cluster of one to elect its leader

// ForceAlone makes etcd form a cluster of one from the copy in dir, and returns the
// revision of its store. It opens no port, and blocks until the new cluster has a leader.
func ForceAlone(ctx context.Context, name, dir string, clientURLs []string, log *slog.Logger) (revision int64, err error) {
	kept, err := etcdfiles.CommitAll(filepath.Join(dir, "member"))
	if err != nil {
		return 0, err
	}
	if kept > 0 {
		log.Info("writes kept that the lost members may not have confirmed", "entries", kept)
	}
	e := &Member{log: log, fatal: make(chan error, 1)}
	e.cfg = embed.NewConfig()
	e.cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(upstream.NewZap(log, e.died))
	e.cfg.Name, e.cfg.Dir, e.cfg.ForceNewCluster = name, dir, true
	e.cfg.InitialCluster = e.cfg.InitialClusterFromName(name) // etcd ignores it if there is a write-ahead log
	e.cfg.ListenPeerUrls, e.cfg.ListenClientUrls = nil, nil
	e.cfg.AdvertiseClientUrls = parseURLs(clientURLs)
	e.cfg.QuotaBackendBytes = 8 << 30
	etcdline.UseLoneTiming(e.cfg)
	server, err := e.start(ctx, supervise.Reporter{})
	if err != nil || server == nil {
		return 0, errors.Join(err, ctx.Err())
	}
	defer server.Close()
	select {
	case <-server.Server.ReadyNotify():
		return server.Server.KV().Rev(), nil
	case err := <-e.fatal:
		return 0, err
	case err := <-server.Err():
		return 0, err
	case <-ctx.Done():
		server.Server.HardStop()
		return 0, ctx.Err()
	case <-time.After(recoverLimit):
		server.Server.HardStop()
		return 0, fmt.Errorf("no leader within %v", recoverLimit)
	}
}

func parseURLs(all []string) (urls []url.URL) {
	for _, s := range all {
		if u, err := url.Parse(s); err == nil {
			urls = append(urls, *u)
		}
	}
	return urls
}
