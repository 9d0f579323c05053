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
	"kthwd/appliance/supervise"
	"kthwd/appliance/upstream"
)

const recoverLimit = 2 * time.Minute // until the new cluster of one must have a leader

// ForceAlone lets etcd make a cluster of one of the copy in dir. It listens nowhere.
func ForceAlone(ctx context.Context, name, dir string, clientURLs []string, log *slog.Logger) (revision int64, err error) {
	kept, err := etcdfiles.CommitAll(filepath.Join(dir, "member"))
	if err != nil {
		return 0, err
	}
	if kept > 0 {
		log.Info("writes kept that the lost members may not have confirmed", "entries", kept)
	}
	e := &Member{Log: log, fatal: make(chan error, 1)}
	e.Cfg = embed.NewConfig()
	e.Cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(upstream.NewZap(log, e.died))
	e.Cfg.Name, e.Cfg.Dir, e.Cfg.ForceNewCluster = name, dir, true
	e.Cfg.InitialCluster = e.Cfg.InitialClusterFromName(name) // not looked at where there is a log
	e.Cfg.ListenPeerUrls, e.Cfg.ListenClientUrls = nil, nil
	e.Cfg.AdvertiseClientUrls = parseURLs(clientURLs)
	e.Cfg.QuotaBackendBytes = 8 << 30
	fastElection(e.Cfg)
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
