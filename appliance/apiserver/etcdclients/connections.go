package etcdclients

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/component-base/tracing"
)

// As upstream's clients of etcd have them (factory/etcd3.go).
const (
	dialTimeout      = 20 * time.Second
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 10 * time.Second
)

// connections are those of all resources of one etcd, until the last of them is destroyed.
type connections struct {
	to                transportKey
	requests, watches *clientv3.Client
	compacts          stopper // nil without compaction
	users             int     // guarded by mu
}

type transportKey struct {
	servers, key, certificate, ca string
	compaction                    time.Duration
}

type stopper interface {
	etcd3.Compactor
	Stop()
}

var (
	mu    sync.Mutex
	known = map[transportKey]*connections{}
)

// acquire returns the connections to that etcd once they are ready. The caller releases them.
func acquire(to storagebackend.TransportConfig, compaction time.Duration) (*connections, error) {
	c, err := opened(to, compaction)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	for _, client := range []*clientv3.Client{c.requests, c.watches} {
		if err := ready(ctx, client); err != nil {
			c.release()
			return nil, err
		}
	}
	return c, nil
}

func opened(to storagebackend.TransportConfig, compaction time.Duration) (*connections, error) {
	key := transportKey{strings.Join(to.ServerList, " "), to.KeyFile, to.CertFile, to.TrustedCAFile, compaction}
	mu.Lock()
	defer mu.Unlock()
	if c := known[key]; c != nil {
		c.users++
		return c, nil
	}
	requests, err := dial(to)
	if err != nil {
		return nil, err
	}
	watches, err := dial(to)
	if err != nil {
		_ = requests.Close()
		return nil, err
	}
	c := &connections{to: key, requests: requests, watches: watches, users: 1}
	if compaction != 0 {
		c.compacts = etcd3.StartCompactorPerEndpoint(requests, compaction)
	}
	known[key] = c
	return c, nil
}

// compactor returns an interface that is nil where nothing compacts.
func (c *connections) compactor() etcd3.Compactor {
	if c.compacts == nil {
		return nil
	}
	return c.compacts
}

func (c *connections) release() {
	mu.Lock()
	defer mu.Unlock()
	if c.users--; c.users > 0 {
		return
	}
	delete(known, c.to)
	if c.compacts != nil {
		c.compacts.Stop()
	}
	_ = c.watches.Close()
	_ = c.requests.Close()
}

// ready waits until the connection is there.
func ready(ctx context.Context, client *clientv3.Client) error {
	connection := client.ActiveConnection()
	for state := connection.GetState(); state != connectivity.Ready; state = connection.GetState() {
		if state == connectivity.Idle {
			connection.Connect()
		}
		if !connection.WaitForStateChange(ctx, state) {
			return fmt.Errorf("etcd grpc connection not ready: %w", ctx.Err())
		}
	}
	return nil
}

// dial begins to connect, with the options of upstream's clients, and never through a proxy of the environment.
func dial(to storagebackend.TransportConfig) (*clientv3.Client, error) {
	config := clientv3.Config{
		Endpoints: to.ServerList, DialTimeout: dialTimeout,
		DialKeepAliveTime: keepaliveTime, DialKeepAliveTimeout: keepaliveTimeout,
		DialOptions: []grpc.DialOption{
			grpc.WithNoProxy(),
			grpc.WithChainUnaryInterceptor(counted().UnaryClientInterceptor()),
			grpc.WithChainStreamInterceptor(counted().StreamClientInterceptor()),
			grpc.WithStatsHandler(otelgrpc.NewClientHandler(
				otelgrpc.WithMessageEvents(otelgrpc.ReceivedEvents, otelgrpc.SentEvents),
				otelgrpc.WithPropagators(tracing.Propagators()),
				otelgrpc.WithTracerProvider(to.TracerProvider),
			)),
		},
		Logger: logger(),
	}
	if to.CertFile != "" || to.KeyFile != "" || to.TrustedCAFile != "" {
		tls, err := transport.TLSInfo{CertFile: to.CertFile, KeyFile: to.KeyFile, TrustedCAFile: to.TrustedCAFile}.ClientConfig()
		if err != nil {
			return nil, err
		}
		config.TLS = tls
	}
	return clientv3.New(config)
}

// logger writes as upstream's clients do: lines of JSON on standard error.
var logger = sync.OnceValue(func() *zap.Logger {
	l, err := logutil.CreateDefaultZapLogger(zapcore.InfoLevel)
	if err != nil {
		return zap.NewNop()
	}
	return l.Named("etcd-client")
})

// counted are the metrics grpc_client_…. Upstream exports none of its own (factory/etcd3.go), so these
// take their place in the registry, and its few other clients of etcd are not counted.
var counted = sync.OnceValue(func() *grpcprom.ClientMetrics {
	own, registry := grpcprom.NewClientMetrics(), legacyregistry.Registerer()
	registry.Unregister(own)
	registry.MustRegister(own)
	return own
})
