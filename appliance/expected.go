package appliance

import (
	"context"
	"log/slog"
	"strings"
)

// expected is a line that upstream logs as a warning or an error although
// nothing is wrong in a kthwd: an operator who greps for ERROR at 3 a.m. must
// not find it in every healthy start. It is still written, at level debug.
type expected struct {
	message string
	about   string // in the error or another value of the record; empty: any
	why     string
}

var expectedLines = []expected{
	{"Running http and grpc server on single port. This is not recommended for production.", "", "2379 is for other machines and etcdctl; the API server uses the socket"},
	{"scheme is http or unix while key and cert files are present; ignoring key and cert files", "unix:", "the socket is guarded by its directory"},
	{"scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL", "unix:", "the socket is guarded by its directory"},
	{"simple token is not cryptographically signed", "", "etcd's own users are not used"},
	{"Failed to detect schema version", "missing term information", "the database is new"},
	{"failed to update storage version", "missing term information", "the database is new"},
	{"setting up serving from embedded etcd failed.", "closed", "etcd stops"},
	{"stopping insecure grpc server due to error", "closed", "etcd stops"},
	{"stopped insecure grpc server due to error", "closed", "etcd stops"},
	{"stopping secure grpc server due to error", "closed", "etcd stops"},
	{"stopped secure grpc server due to error", "closed", "etcd stops"},
	{"The manifest file is empty, ignoring.", "", "no --allow-metric-labels-manifest is given"},
	{"Failed to ensure lease exists, will retry", `namespaces "kube-system" not found`, "the namespace is made a moment later"},
	{"Error while syncing ConfigMap", `namespaces "kube-system" not found`, "the namespace is made a moment later"},
}

// demoted hands a record on, an expected line at level debug.
func demoted(ctx context.Context, h slog.Handler, r slog.Record) error {
	if isExpected(r) {
		if r.Level = slog.LevelDebug; !h.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return h.Handle(ctx, r)
}

// isExpected tells whether a record is one of expectedLines.
func isExpected(r slog.Record) bool {
	if r.Level < slog.LevelWarn {
		return false
	}
	for _, e := range expectedLines {
		if r.Message == e.message && mentions(r, e.about) {
			return true
		}
	}
	return false
}

func mentions(r slog.Record, about string) bool {
	if about == "" {
		return true
	}
	found := false
	r.Attrs(func(a slog.Attr) bool {
		found = strings.Contains(a.Value.String(), about)
		return !found
	})
	return found
}
