package others

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kthwd/health/conns"
)

// maxConns bounds the connections to the address. Each other controller needs one or two.
const maxConns = 64

// Listen makes Run answer the other controllers at address, HOST:PORT, as long as the cluster
// has any: with a profile that puts etcd's client port on loopback, they cannot reach that.
// It answers controllers only: their requests for the state and at the paths of Handle; three of etcd's maintenance API,
// which move the leadership, tell the size of the database and defragment it; and those with
// which a controller that is down changes its own address (package readdress). Call it before
// Run.
func (o *Others) Listen(address string) { o.address = address }

// tend opens the address when the cluster has other members, and closes it when it has none.
func (o *Others) tend(others int) {
	switch {
	case o.address == "":
	case others == 0:
		o.shut()
	case o.server == nil:
		err := o.open()
		if err != nil && err.Error() != o.failed {
			o.log.Warn("the other controllers cannot ask this one for its state", "addr", o.address, "err", err)
		}
		o.failed = ""
		if err != nil {
			o.failed = err.Error()
		}
	}
}

func (o *Others) open() error {
	member := o.member.Running()
	if member == nil {
		return errors.New("etcd has not started")
	}
	info := member.Config().ClientTLSInfo
	if info.Empty() || !info.ClientCertAuth {
		return errors.New("etcd's client port asks for no certificate")
	}
	config, err := info.ServerConfig()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", o.address)
	if err != nil {
		return err
	}
	limit := conns.New(maxConns)
	o.server = &http.Server{
		Handler: o.endpoint(), TLSConfig: config, ErrorLog: slog.NewLogLogger(o.log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: within, IdleTimeout: 12 * every, MaxHeaderBytes: 16 << 10, ConnState: limit.Track,
	}
	go o.server.ServeTLS(l, "", "") // ends with shut
	o.log.Debug("open for the other controllers", "addr", o.address)
	return nil
}

// shut closes the address, if it is open.
func (o *Others) shut() {
	if o.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if o.server.Shutdown(ctx) != nil {
		o.server.Close()
	}
	o.server = nil
}

// endpoint is what the address serves.
func (o *Others) endpoint() http.Handler {
	gate := grpc.NewServer()
	pb.RegisterMaintenanceServer(gate, &maintenance{o: o})
	pb.RegisterClusterServer(gate, &cluster{o: o})
	state := http.NewServeMux()
	state.Handle(Path, o.state)
	for path, h := range o.more {
		state.Handle(path, h)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			if o.ofController(r.TLS) {
				gate.ServeHTTP(w, r)
				return
			}
			http.Error(w, notController, http.StatusForbidden)
			return
		}
		state.ServeHTTP(w, r)
	})
}

// notController is the answer to a client that is no controller.
const notController = "only controllers of this cluster are answered"

// ofController reports whether the client of a connection is a controller. The port has
// verified the certificate already, unless a user's flag tells it not to.
func (o *Others) ofController(s *tls.ConnectionState) bool {
	server := o.member.Running()
	return server != nil && s != nil && len(s.VerifiedChains) > 0 && namesOf(server).Match(s.PeerCertificates[0])
}

// maintenance are the calls of etcd's maintenance API that other controllers make. The others
// are unimplemented here.
type maintenance struct {
	pb.UnimplementedMaintenanceServer
	o *Others
}

// MoveLeader makes another member the leader, as etcd's own does (etcdserver/api/v3rpc/maintenance.go).
func (m *maintenance) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	server := m.o.member.Running()
	if server == nil || server.Server.MemberID() != server.Server.Leader() {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	if err := m.o.member.MoveLeader(ctx, types.ID(r.TargetID)); err != nil {
		return nil, err
	}
	m.o.log.Info("leadership moved, as another controller asked", "to", types.ID(r.TargetID).String())
	return &pb.MoveLeaderResponse{}, nil
}

// Defragment rewrites the database of this member, as etcd's own does.
func (m *maintenance) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	err := m.o.member.Defragment(ctx, func() error { return m.o.member.Running().Server.Defragment() })
	if err != nil {
		return nil, err
	}
	return &pb.DefragmentResponse{}, nil
}

// Status tells the state of this member, as etcd's own does.
func (m *maintenance) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return m.o.member.StatusResponse()
}

// cluster are the calls of etcd's cluster API that other controllers make: none of them adds or
// removes a member.
type cluster struct {
	pb.UnimplementedClusterServer
	o *Others
}

// MemberList returns the members.
func (c *cluster) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	server := c.o.member.Running()
	if server == nil {
		return nil, rpctypes.ErrGRPCStopped
	}
	return v3rpc.NewClusterServer(server.Server).MemberList(ctx, r)
}

// MemberUpdate changes the peer URL of a member, which is not this one: a controller changes
// its own address only, and does so while it is down.
func (c *cluster) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	server := c.o.member.Running()
	switch {
	case server == nil:
		return nil, rpctypes.ErrGRPCStopped
	case r.ID == uint64(server.Server.MemberID()):
		return nil, status.Error(codes.PermissionDenied, "no other controller changes the address of this one")
	}
	changed, err := v3rpc.NewClusterServer(server.Server).MemberUpdate(ctx, r)
	if err == nil {
		c.o.log.Info("peer URL changed, as another controller asked", "member", types.ID(r.ID).String(), "urls", r.PeerURLs)
	}
	return changed, err
}
