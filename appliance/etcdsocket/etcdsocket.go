// Package etcdsocket connects to the etcd member that runs on a data directory, through its
// unix socket, which asks for no certificate.
//
//	client, err := etcdsocket.Connect(ctx, layout.EtcdSocket())
//	defer client.Close()
//
// It is for kthwd's verbs: the process that has the member reaches it without a socket.
package etcdsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"kthwd/appliance/advice"
)

// Connect returns a client of the member behind socket; the caller closes it. It fails at
// once if no member runs there. The client has one endpoint.
func Connect(ctx context.Context, socket string) (*clientv3.Client, error) {
	if err := answers(ctx, socket); err != nil {
		return nil, err
	}
	// The connections go to the socket, whatever the endpoint says: a socket's path may have
	// characters that an endpoint may not.
	return clientv3.New(clientv3.Config{
		Endpoints: []string{"passthrough:///kthwd"}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx, socket) })},
	})
}

// answers reports an error unless a process listens on the socket; gRPC would try for ever.
func answers(ctx context.Context, socket string) error {
	conn, err := dial(ctx, socket)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, fs.ErrPermission):
		return advice.With(err, "run this as root, or as the user of kthwd")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return advice.With(fmt.Errorf("no etcd member runs in %s", filepath.Dir(filepath.Dir(socket))), "start kthwd first: the running member does the work")
	}
	return err
}

// dial connects through the opened directory: the path may be longer than a socket address
// allows.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket)))
}
