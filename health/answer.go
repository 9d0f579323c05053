package health

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"unicode"
)

// ServeHTTP answers one request. It may be used without Run, on a server of the caller.
func (b *Bridge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code, body := b.answer(r)
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if code == http.StatusMethodNotAllowed {
		h.Set("Allow", "GET, HEAD")
	}
	b.count.request(code)
	w.WriteHeader(code)
	io.WriteString(w, body) // net/http drops it for HEAD
}

// answer returns the status code and the body for r.
func (b *Bridge) answer(r *http.Request) (int, string) {
	p := b.probeFor(r.URL.Path)
	switch {
	case !b.servesHost(r.Host):
		// 421 rather than 404: the path exists, but not under this host.
		return http.StatusMisdirectedRequest, "not the host this bridge answers for\n"
	case p == nil:
		return http.StatusNotFound, "not found; try /healthz, /readyz or /livez\n"
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return http.StatusMethodNotAllowed, "method not allowed\n"
	}
	v := b.verdictOf(r.Context(), p)
	code := http.StatusOK
	if !v.ok {
		code = http.StatusServiceUnavailable
	}
	switch {
	case r.URL.Query().Has("verbose"):
		return code, b.verbose(strings.TrimPrefix(r.URL.Path, "/"), v)
	case v.ok:
		return code, "ok" // no newline, like upstream
	default:
		return code, v.reason + "\n"
	}
}

// probeFor returns the probe of a path, nil for none.
func (b *Bridge) probeFor(path string) *probe {
	switch path {
	case "/healthz", "/readyz":
		return b.ready
	case "/livez":
		return b.live
	}
	return nil
}

// servesHost reports whether the bridge answers for the request's host.
func (b *Bridge) servesHost(host string) bool {
	if b.cfg.ServerName == "" {
		return true
	}
	return bareHost(host) == bareHost(b.cfg.ServerName)
}

// bareHost returns host in lower case, without port, brackets and final dot.
func bareHost(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// verdictOf combines kthwd's own record with the apiserver's answer. Local affects
// readiness only: an apiserver that is draining is not ready but alive.
func (b *Bridge) verdictOf(ctx context.Context, p *probe) verdict {
	if b.invalid != nil {
		return verdict{reason: "health bridge: not configured"}
	}
	ok, reason := b.cfg.Local()
	if reason = firstLine(reason); !ok && reason == "" {
		reason = "not ready"
	}
	if !ok && p == b.ready {
		return verdict{reason: reason}
	}
	// Twice the limit of a probe: the client gets an answer even if a probe hangs
	// where no deadline applies, in reading a file.
	ctx, cancel := context.WithTimeout(ctx, 2*b.cfg.Timeout)
	defer cancel()
	v := p.verdict(ctx)
	if !v.ok && !ok { // Local's reason is more specific than "connection refused"
		v.reason += " (" + reason + ")"
	}
	return v
}

// verbose lists kthwd's components, the apiserver's checks and the verdict on the
// requested path, in the form of upstream's healthz package.
func (b *Bridge) verbose(name string, v verdict) string {
	var s strings.Builder
	for _, c := range b.cfg.Components() {
		writeCheck(&s, c)
	}
	for _, c := range v.checks {
		c.Name = "kube-apiserver/" + c.Name
		writeCheck(&s, c)
	}
	s.WriteString(name)
	if v.ok {
		s.WriteString(" check passed\n")
	} else {
		s.WriteString(" check failed: " + v.reason + "\n")
	}
	return s.String()
}

// writeCheck writes "[+]name ok", "[+]name ok: standby" or "[-]name starting".
func writeCheck(s *strings.Builder, c Check) {
	reason := firstLine(c.Reason)
	if c.OK {
		s.WriteString("[+]" + firstLine(c.Name) + " ok")
		if reason != "" {
			s.WriteString(": " + reason)
		}
	} else {
		if reason == "" {
			reason = "failed"
		}
		s.WriteString("[-]" + firstLine(c.Name) + " " + reason)
	}
	s.WriteByte('\n')
}

// maxLine limits a line supplied by the caller, in bytes.
const maxLine = 200

// firstLine makes s presentable: one short line of printable text. Further lines (such as
// a stack) are not public.
func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + "…"
	}
	return s
}
