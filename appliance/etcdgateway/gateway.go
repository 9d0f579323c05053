// Package etcdgateway serves etcd's HTTP API (/v3/) by calling the gRPC API of a member
// through its unix socket.
//
// etcd's own gateway connects to one of the member's listeners, the first it finds, with
// a TLS configuration that refuses every server once the listener accepts only certain
// names (embed/etcd.go:grpcGatewayDial skips the verification that
// transport/listener.go:VerifyPeerCertificate depends on). This one has the same
// handlers and options, and needs no TLS:
//
//	g := etcdgateway.New(socket)
//	cfg.UserHandlers["/v3/"] = g
//
// It connects at the first request. Close it before the member. It does not check its
// callers; the listener that serves it does.
package etcdgateway

import (
	"context"
	"errors"
	"math"
	"net/http"
	"sync"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/tmc/grpc-websocket-proxy/wsproxy"
	etcdservergw "go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	v3electiongw "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb/gw"
	v3lockgw "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb/gw"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
)

// Gateway is a handler of etcd's HTTP API. Make one with New. Its methods may be called
// from any goroutine.
type Gateway struct {
	socket string

	mu      sync.Mutex
	conn    *grpc.ClientConn
	handler http.Handler
	closed  bool
}

// New makes the gateway to the unix socket at that path. It connects to nothing.
func New(socket string) *Gateway { return &Gateway{socket: socket} }

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	handler, err := g.open()
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	handler.ServeHTTP(w, r)
}

func (g *Gateway) open() (http.Handler, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, errors.New("etcd is stopping")
	}
	if g.handler != nil {
		return g.handler, nil
	}
	conn, err := grpc.NewClient("unix:"+g.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		return nil, err
	}
	// The options are those of etcd's own gateway (embed/serve.go): answers have the protocol's field names.
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{Marshaler: &runtime.JSONPb{
		MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
		UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
	}}))
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		etcdservergw.RegisterKVHandler, etcdservergw.RegisterWatchHandler, etcdservergw.RegisterLeaseHandler, etcdservergw.RegisterClusterHandler,
		etcdservergw.RegisterMaintenanceHandler, etcdservergw.RegisterAuthHandler, v3lockgw.RegisterLockHandler, v3electiongw.RegisterElectionHandler,
	} {
		if err := register(context.Background(), mux, conn); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	g.conn = conn
	g.handler = wsproxy.WebsocketProxy(mux, wsproxy.WithMaxRespBodyBufferSize(math.MaxInt32),
		wsproxy.WithRequestMutator(func(_, outgoing *http.Request) *http.Request {
			outgoing.Method = http.MethodPost // streams are started by POST
			return outgoing
		}))
	return g.handler, nil
}

// Close ends the connection and every request on it; later requests get status 503.
// A nil Gateway needs no Close.
func (g *Gateway) Close() {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.conn != nil {
		_ = g.conn.Close() // it has nothing to write
	}
}
