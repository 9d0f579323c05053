package embedded

import (
	"context"
	"log/slog"
	"net/url"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/etcdfiles"
)

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
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.ForceNewCluster = name, dir, true
	cfg.AdvertiseClientUrls = parseURLs(clientURLs)
	o, err := openOffline(ctx, cfg, log)
	if err != nil {
		return 0, err
	}
	defer o.Close()
	return o.Server.KV().Rev(), nil
}

func parseURLs(all []string) (urls []url.URL) {
	for _, s := range all {
		if u, err := url.Parse(s); err == nil {
			urls = append(urls, *u)
		}
	}
	return urls
}
