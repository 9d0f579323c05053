package upstream

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	restclient "k8s.io/client-go/rest"
)

// SilenceDeprecationWarnings keeps client-go from logging a warning for each deprecated API
// that the programs themselves use, as both upstream commands do.
func SilenceDeprecationWarnings() { restclient.SetDefaultWarningHandler(restclient.NoWarnings{}) }

// noiseFilter is the last step of the bridge from upstream's loggers: it moves
// expected lines to level debug, cuts dumps of requests, and keeps a line that
// repeats from filling the disk.
type noiseFilter struct {
	slog.Handler
	live    context.Context // lines after its end are part of a stop and go to level debug
	program func(slog.Record) string
	repeats *repeats
}

func newNoiseFilter(live context.Context, h slog.Handler, program func(slog.Record) string) *noiseFilter {
	return &noiseFilter{h, live, program, &repeats{now: time.Now, seen: map[string]*window{}}}
}

// always is the program of a logger that belongs to one.
func always(component string) func(slog.Record) string {
	return func(slog.Record) string { return component }
}

// Handle implements slog.Handler.
func (f *noiseFilter) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return f.Handler.Handle(ctx, r)
	}
	if r.Level >= slog.LevelError {
		lastErrors.add(lineOf(r), false)
	}
	if isExpected(r) || f.live.Err() != nil {
		r.Level = slog.LevelDebug
	} else {
		heard.note(f.program(r), r)
	}
	if f.Handler.Enabled(ctx, slog.LevelDebug) {
		return f.Handler.Handle(ctx, r)
	}
	if r.Level == slog.LevelDebug {
		return nil
	}
	allowed, suppressed := f.repeats.allow(r.Message)
	if !allowed {
		return nil
	}
	r = withoutDumps(r)
	if suppressed > 0 {
		r.AddAttrs(slog.Int("suppressed", suppressed))
	}
	return f.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (f *noiseFilter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &noiseFilter{f.Handler.WithAttrs(attrs), f.live, f.program, f.repeats}
}

// WithGroup implements slog.Handler.
func (f *noiseFilter) WithGroup(name string) slog.Handler {
	return &noiseFilter{f.Handler.WithGroup(name), f.live, f.program, f.repeats}
}

// repeats lets the first few lines of a kind through and counts the others.
type repeats struct {
	now  func() time.Time
	mu   sync.Mutex
	seen map[string]*window
}

// A slow disk makes etcd warn about each request, a thousand a second.
const (
	repeatWindow = 10 * time.Second
	repeatBurst  = 3
	repeatKinds  = 1000 // messages remembered; names in messages make their number unbounded
)

type window struct {
	began      time.Time
	count      int
	suppressed int
}

// allow reports whether the line may be written, and how many lines with the same
// message were suppressed since the last one written.
func (r *repeats) allow(message string) (ok bool, suppressed int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	w := r.seen[message]
	if w == nil {
		if len(r.seen) >= repeatKinds {
			clear(r.seen)
		}
		w = &window{began: now}
		r.seen[message] = w
	}
	if now.Sub(w.began) >= repeatWindow {
		suppressed = w.suppressed
		*w = window{began: now}
	}
	if w.count++; w.count > repeatBurst {
		w.suppressed++
		return false, 0
	}
	return true, suppressed
}

// dumps are the keys under which etcd logs whole requests.
var dumps = map[string]bool{"request": true, "response": true, "request content": true}

func withoutDumps(r slog.Record) slog.Record {
	short := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if !dumps[a.Key] {
			short.AddAttrs(a)
		}
		return true
	})
	return short
}

// expected is a line that upstream logs as a warning or an error although
// nothing is wrong in kthwd: an operator who greps for ERROR at 3 a.m. must not find
// it in every healthy start. It is still written, at level debug.
type expected struct {
	message string // empty matches any
	about   string // part of a value of the record, "*" for any text without quotes; empty matches any record
	why     string
}

var expectedLines = []expected{
	{"Running http and grpc server on single port. This is not recommended for production.", "", "2379 is for other machines and etcdctl; the API server uses the socket"},
	{"scheme is http or unix while key and cert files are present; ignoring key and cert files", "unix:", "the socket is guarded by its directory"},
	{"scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL", "unix:", "the socket is guarded by its directory"},
	{"simple token is not cryptographically signed", "", "etcd's own users are not used"},
	{"Failed to detect schema version", "missing term information", "the database is new"},
	{"failed to update storage version", "missing term information", "the database is new"},
	{"request stats", "", "the same request is in a line of its own when it was slow"},
	{"setting up serving from embedded etcd failed.", "closed", "etcd stops"},
	{"stopping insecure grpc server due to error", "closed", "etcd stops"},
	{"stopped insecure grpc server due to error", "closed", "etcd stops"},
	{"stopping secure grpc server due to error", "closed", "etcd stops"},
	{"stopped secure grpc server due to error", "closed", "etcd stops"},
	{"The manifest file is empty, ignoring.", "", "no --allow-metric-labels-manifest is given"},
	{"Failed to ensure lease exists, will retry", `namespaces "kube-system" not found`, "the namespace is made a moment later"},
	{"Found stale data, removed previous endpoints on kubernetes service, apiserver didn't exit successfully previously", "", "upstream finds its own service without endpoints at a start"},
	{"unable to register metrics", "duplicate", "an earlier term of kube-controller-manager in this process has done it"},
	{"Error initializing dynamic plugin prober", "/usr/libexec/kubernetes", "FlexVolume plugins are the kubelet's; the user of the unit may not make their directory, nor need it"},
	{"retrying of unary invoker failed", "context canceled", "the client has gone"},
	{"retrying of unary invoker failed", "the client connection is closing", "an etcd client that is no longer needed"},
	{"Unhandled Error", "for Service default/kubernetes is not allocated; repairing", "a first look at addresses between the making of the service and its allocation; upstream mends it itself"},
	{"Unhandled Error", "http: Handler timeout", "a request has taken longer than its client allows; the client is told, and the metrics of the API server count it"},
	{"Post-timeout activity", "/readyz", "the same, of a probe"},
	{"Unhandled Error", "is not as new as written version", "a controller of kube-controller-manager has read its own last write too early; it tries again at once"},
	{"", "the object has been modified; please apply your changes to the latest version", "two writers of one object: the second reads it again and repeats its change"},
	{"Server rejected event (will not retry!)", "because it is being terminated", "what happens in a namespace that is being deleted cannot be recorded there"},
	{"Failed to get node", `node "" not found`, "a pod without a node is being deleted while kube-controller-manager looks for pods on lost nodes (pkg/controller/podgc)"},
	{"Error building controllers", "context canceled", "the term has ended meanwhile (package controllers, accounts.go)"},
	{"Failed to delete unscheduled terminating pod", `pods "*" not found`, "another one has deleted it first, such as the deletion of its namespace (pkg/controller/podgc)"},
	{"Unhandled Error", `syncing job: tracking status: adding uncounted pods to status: jobs.batch "*" not found`, "a job that is deleted while its status is written"},
	{"Error while syncing ConfigMap", `namespaces "kube-system" not found`, "the namespace is made a moment later"},
}

// expectedParts are parts of messages that also hold values, such as numbers.
var expectedParts = []string{
	"failed to sync with latest state: context canceled", // a watch whose client left before its first list was read (storage/etcd3/watcher.go)
	"cannot campaign at term",                            // a lone etcd member in its first ticks
	"Error removing old endpoints from kubernetes service: no API server IP addresses were listed in storage", // a restart of the only API server
}

// isExpected reports whether a record matches expectedLines or expectedParts.
func isExpected(r slog.Record) bool {
	for _, e := range expectedLines {
		if (e.message == "" || r.Message == e.message) && mentions(r, e.about) {
			return true
		}
	}
	for _, part := range expectedParts {
		if strings.Contains(r.Message, part) {
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
		found = inOrder(a.Value.String(), strings.Split(about, "*"))
		return !found
	})
	return found
}

// inOrder reports whether the parts are in s, one after another, without quotes between them.
func inOrder(s string, parts []string) bool {
	for i, part := range parts {
		before, rest, ok := strings.Cut(s, part)
		if !ok || i > 0 && strings.Contains(before, `"`) {
			return false
		}
		s = rest
	}
	return true
}
