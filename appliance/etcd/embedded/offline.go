package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/etcdline"
	"kthwd/appliance/supervise"
	"kthwd/appliance/upstream"
)

// Offline is an etcd member without ports, for work on files that no other etcd uses.
type Offline struct {
	*embed.Etcd

	fatal chan error
}

// OpenOffline starts etcd on the data directory dir, which a restore has made for a member
// called name, and waits until it leads itself. fast leaves out the flushes to the disk, for
// data that are thrown away. The caller calls Close.
func OpenOffline(ctx context.Context, name, dir string, fast bool, log *slog.Logger) (*Offline, error) {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.UnsafeNoFsync = name, dir, fast
	return openOffline(ctx, cfg, log)
}

// openOffline starts the member of cfg without ports.
func openOffline(ctx context.Context, cfg *embed.Config, log *slog.Logger) (*Offline, error) {
	fatal := make(chan error, 1)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(upstream.NewZap(log, func(err error) {
		select {
		case fatal <- err:
		default:
		}
	}))
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name) // etcd ignores it if there is a write-ahead log
	cfg.ListenPeerUrls, cfg.ListenClientUrls = nil, nil
	cfg.QuotaBackendBytes = -1 // no alarm, however large the database is
	etcdline.UseLoneTiming(cfg)
	server, err := Start(ctx, cfg, fatal, supervise.Reporter{}, closeLate)
	if err != nil || server == nil {
		return nil, errors.Join(err, ctx.Err())
	}
	o := &Offline{server, fatal}
	if err := o.ready(ctx); err != nil {
		_ = o.Close() // which has no better reason
		return nil, err
	}
	return o, nil
}

// closeLate closes a server that nobody waits for: before it leads itself, Close would wait for that
// (embed/serve.go:serve).
func closeLate(server *embed.Etcd) {
	select {
	case <-server.Server.ReadyNotify():
	default:
		server.Server.HardStop()
	}
	server.Close()
}

// Close stops the member. The error is the one of which it died, on a full disk for example: then
// the store may lack what was written last. Nothing waits for a member that has died, because a
// goroutine of etcd's that ends in a fatal error leaves the others waiting for it
// (server/storage/backend/backend.go:Close); they end with the process.
func (o *Offline) Close() error {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		o.Etcd.Close()
	}()
	select {
	case <-closed:
	case err := <-o.fatal:
		return err
	}
	select {
	case err := <-o.fatal:
		return err
	default:
		return nil
	}
}

// ready waits until the member leads itself.
func (o *Offline) ready(ctx context.Context) error {
	select {
	case <-o.Server.ReadyNotify():
		return nil
	case err := <-o.fatal:
		select {
		case o.fatal <- err: // for Close
		default:
		}
		return err
	case err := <-o.Err():
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(offlineLimit):
		return fmt.Errorf("no leader within %v", offlineLimit)
	}
}

const offlineLimit = 2 * time.Minute // to elect itself
