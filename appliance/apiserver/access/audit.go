package access

import (
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"

	authnv1 "k8s.io/api/authentication/v1"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/user"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericoptions "k8s.io/apiserver/pkg/server/options"
)

// The audit log is rotated by size, and keeps a few files. A client without credentials
// could push all evidence out of it with long requests. So the records of such clients go
// to a file of their own, which only these clients can rotate, and no request may be long:
// a record repeats the request's line up to five times.
const (
	maxRequestLine = 16 << 10
	maxForwarded   = 4 << 10 // X-Forwarded-For, every address of which is recorded
)

// Bounds of the second file: two of these sizes on the disk.
const (
	unauthenticatedSize    = 100 // MiB, where the user's flags switch rotation off
	unauthenticatedBackups = 1
)

// SplitAudit sends the records of unauthenticated requests to the second file. A webhook
// goes on receiving all records. Without a file there is nothing to split.
func SplitAudit(config *genericapiserver.Config, options *genericoptions.AuditOptions) error {
	path := options.LogOptions.Path
	if config.AuditBackend == nil || path == "" || path == "-" {
		return nil
	}
	second := *options
	second.LogOptions.Path = unauthenticatedLog(path)
	second.LogOptions.MaxBackups = unauthenticatedBackups
	if second.LogOptions.MaxSize == 0 {
		second.LogOptions.MaxSize = unauthenticatedSize
	}
	made := &genericapiserver.Config{EgressSelector: config.EgressSelector}
	if err := second.ApplyTo(made); err != nil {
		return err
	}
	config.AuditBackend = splitBackend{known: config.AuditBackend, unknown: made.AuditBackend}
	return nil
}

// unauthenticatedLog returns the path of the second file for that of the audit log. The
// rotation of the first one does not take it for an old file: these have a time in the
// place of the word.
func unauthenticatedLog(path string) string {
	end := filepath.Ext(path)
	return strings.TrimSuffix(path, end) + "-unauthenticated" + end
}

// splitBackend is an audit backend for requests of known users and one for all others.
type splitBackend struct{ known, unknown audit.Backend }

// ProcessEvents implements audit.Sink.
func (b splitBackend) ProcessEvents(events ...*auditinternal.Event) bool {
	ok := true
	for i := range events {
		ok = b.of(events[i]).ProcessEvents(events[i]) && ok
	}
	return ok
}

// of returns the backend of one record. A request whose credentials are wrong has no user.
func (b splitBackend) of(e *auditinternal.Event) audit.Backend {
	if e.User.Username == "" || isAnonymous(e.User) {
		return b.unknown
	}
	return b.known
}

// isAnonymous tells the user without credentials from one who was given the name: the latter has
// other groups, or an ID of the credentials (authentication/request/anonymous, .../x509).
func isAnonymous(u authnv1.UserInfo) bool {
	return u.Username == user.Anonymous && slices.Equal(u.Groups, []string{user.AllUnauthenticated}) && len(u.Extra) == 0
}

// Run implements audit.Backend.
func (b splitBackend) Run(stop <-chan struct{}) error {
	return errors.Join(b.known.Run(stop), b.unknown.Run(stop))
}

// Shutdown implements audit.Backend.
func (b splitBackend) Shutdown() {
	b.known.Shutdown()
	b.unknown.Shutdown()
}

// String implements audit.Backend.
func (b splitBackend) String() string {
	return "known:" + b.known.String() + ",unauthenticated:" + b.unknown.String()
}

// Bounded refuses what is longer than any client of Kubernetes sends, before it is
// authenticated, recorded and acted on. net/http allows a MiB.
func Bounded(build Chain) Chain {
	return func(h http.Handler, c *genericapiserver.Config) http.Handler {
		next := build(h, c)
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			switch {
			case len(req.RequestURI) > maxRequestLine:
				http.Error(w, "the URL is longer than 16 KiB", http.StatusRequestURITooLong)
			case forwardedLength(req) > maxForwarded:
				http.Error(w, "X-Forwarded-For is longer than 4 KiB", http.StatusRequestHeaderFieldsTooLarge)
			default:
				next.ServeHTTP(w, req)
			}
		})
	}
}

// Chain adds the filters in front of a handler.
type Chain = func(http.Handler, *genericapiserver.Config) http.Handler

func forwardedLength(req *http.Request) (n int) {
	for _, v := range req.Header["X-Forwarded-For"] {
		n += len(v)
	}
	return n
}
