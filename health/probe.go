package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"kthwd/appliance/text"
)

// A verdict is the result of one probe.
type verdict struct {
	ok     bool
	reason string  // public reason for not ok; empty when ok
	checks []Check // the apiserver's own list
	err    error   // the full error, for the log only
}

// A probe queries one path of the apiserver on behalf of all concurrent requests.
type probe struct {
	b    *Bridge
	up   *upstream
	path string

	mu     sync.Mutex
	last   *flight // the flight in progress, or else the latest; nil before the first
	logged string  // reason in the last log line; used by the flights, one at a time
}

// A flight is one query under way. Its fields are set before done is closed.
type flight struct {
	done    chan struct{}
	verdict verdict
	ended   time.Time // guarded by probe.mu; zero while in progress
}

// verdict returns the latest verdict if it is recent enough, else that of the flight in
// progress, else that of a new one. A cancelled ctx does not cancel the flight.
func (p *probe) verdict(ctx context.Context) verdict {
	f := p.join()
	select {
	case <-f.done:
		return f.verdict
	case <-ctx.Done():
		return verdict{reason: "kube-apiserver " + p.path + ": no verdict in time"}
	}
}

// join returns the flight to wait for, and starts it if necessary.
func (p *probe) join() *flight {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.last; f != nil && (f.ended.IsZero() || p.b.now().Sub(f.ended) < p.b.cfg.Interval) {
		return f
	}
	p.last = &flight{done: make(chan struct{})}
	go p.fly(p.last)
	return p.last
}

// fly queries once, with the context of the bridge, not of a request.
func (p *probe) fly(f *flight) {
	ctx, cancel := context.WithTimeout(p.b.lifetime(), p.b.cfg.Timeout)
	defer cancel()
	start := time.Now()
	v := p.up.query(ctx, p.path)
	p.b.count.probe(start, v.ok)
	p.log(v)

	p.mu.Lock()
	f.verdict, f.ended = v, p.b.now()
	p.mu.Unlock()
	close(f.done)
}

// log writes one line when the verdict differs from the previous one.
func (p *probe) log(v verdict) {
	now := v.reason
	if v.ok {
		now = "ok"
	}
	if now == p.logged || errors.Is(v.err, context.Canceled) {
		return
	}
	p.logged = now
	if v.ok {
		p.b.cfg.Log.Info("apiserver answers", "path", p.path)
	} else {
		p.b.cfg.Log.Warn("apiserver does not pass", "path", p.path, "reason", v.reason, "err", v.err)
	}
}

// wait returns when no probe is in flight or ctx is done.
func (p *probe) wait(ctx context.Context) {
	p.mu.Lock()
	f := p.last
	p.mu.Unlock()
	if f == nil {
		return
	}
	select {
	case <-f.done:
	case <-ctx.Done():
	}
}

// An upstream is the apiserver, queried over a new connection each time. It does not use
// http.Transport, which would add proxies from the environment, redirects, retries, and
// dials that outlive their request.
type upstream struct {
	addr    string
	timeout time.Duration // for the message; the context has the deadline
	creds   *credentials
}

func newUpstream(cfg Config) *upstream {
	addr, _ := targetAddress(cfg.Target) // Run returns the error
	return &upstream{
		addr:    addr,
		timeout: cfg.Timeout,
		creds:   &credentials{ca: cfg.CAFile, cert: cfg.CertFile, key: cfg.KeyFile, log: cfg.Log},
	}
}

// query requests path, always with ?verbose, so that requests with and without the list
// can share one probe.
func (u *upstream) query(ctx context.Context, path string) verdict {
	prefix := "kube-apiserver " + path + ": "
	conf, err := u.creds.load()
	if err != nil {
		return verdict{reason: "health bridge: no usable CA or client certificate", err: err}
	}
	status, body, err := u.get(ctx, conf, path+"?verbose")
	if err != nil {
		return verdict{reason: prefix + u.explain(err), err: err}
	}
	checks := parseChecks(body)
	if status == http.StatusOK {
		return verdict{ok: true, checks: checks}
	}
	return verdict{reason: prefix + explainStatus(status, checks), checks: checks}
}

// maxAnswer limits an answer, header and body, in bytes. About 60 checks take 3 kB.
const maxAnswer = 64 << 10

// get makes one request on a new connection, and closes it.
func (u *upstream) get(ctx context.Context, conf *tls.Config, uri string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+u.addr+uri, nil)
	if err != nil {
		return 0, nil, err
	}
	req.Close = true
	req.Header.Set("User-Agent", "kthwd-health")

	conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", u.addr)
	if err != nil {
		return 0, nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	if err := req.Write(conn); err != nil {
		return 0, nil, cause(ctx, err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxAnswer)), req)
	if err != nil {
		return 0, nil, cause(ctx, err)
	}
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, cause(ctx, err)
}

// cause puts the context's error in front of the i/o error it led to.
func cause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// explain returns a public reason for an error.
func (u *upstream) explain(err error) string {
	var (
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		host    x509.HostnameError
		record  tls.RecordHeaderError
		op      *net.OpError
	)
	switch {
	case errors.Is(err, context.Canceled):
		return "stopping"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("no answer within %v", u.timeout)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.As(err, &unknown):
		return "its certificate is not signed by the cluster's CA"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "its certificate, or the CA's, has expired or is not valid yet"
	case errors.As(err, &invalid):
		return "its certificate is not valid"
	case errors.As(err, &host):
		return "its certificate does not name the address it is queried at"
	case errors.As(err, &record):
		return "it does not speak TLS"
	case errors.As(err, &op) && op.Op == "remote error": // a TLS alert; the type is unexported
		return "TLS refused: " + strings.TrimPrefix(firstLine(op.Err.Error()), "tls: ")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return "connection closed before the end of the answer"
	}
	return "no usable answer"
}

// explainStatus returns the status with the names of the first failed checks.
func explainStatus(status int, checks []Check) string {
	const most = 5
	var failed []string
	for _, c := range checks {
		if !c.OK {
			failed = append(failed, c.Name)
		}
	}
	switch n := len(failed); {
	case status == http.StatusUnauthorized:
		return "401: the bridge's client certificate is not accepted"
	case n == 0:
		return fmt.Sprint(status)
	case n > most:
		return fmt.Sprintf("%d: %s and %d more failed", status, strings.Join(failed[:most], ", "), n-most)
	default:
		return fmt.Sprintf("%d: %s failed", status, strings.Join(failed, ", "))
	}
}

// checkLine matches a line of an apiserver's answer; the text after the name is dropped.
// See k8s.io/apiserver/pkg/server/healthz, handleRootHealth.
var checkLine = text.Pattern(`(?m)^\[([+-])\]([A-Za-z0-9][A-Za-z0-9._/:-]{0,99})(?: .*)?$`)

// parseChecks returns the checks in the apiserver's answer, and skips other lines.
func parseChecks(body []byte) []Check {
	const most = 200
	var checks []Check
	for _, m := range checkLine().FindAllSubmatch(body, most) {
		checks = append(checks, Check{Name: string(m[2]), OK: m[1][0] == '+'})
	}
	return checks
}
