package check

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// sessionLife is how long a TLS session is resumed. A resumed session shows no
// certificate, so a bad new certificate would otherwise go unnoticed.
const sessionLife = time.Minute

// A prober runs checks, one at a time. drop ends it.
type prober struct {
	cfg   Config
	addr  func() (netip.AddrPort, error)
	lost  func() // called when the backend has ended an idle connection; may be nil
	heard func() // called when the backend has answered a SYN; may be nil

	eager    bool          // the backend has given no sign of life for a while
	rtt      time.Duration // of a TCP handshake, averaged
	tls      *tls.Config   // of the last handshake
	tlsUntil time.Time     // when its session is forgotten
	line     *line         // the connection of the last check; nil when it cannot carry another
	asked    time.Time     // when the present check sent its request on that line
	late     *late         // waits for answers that come after their check; nil when they do not matter
	turn     int           // attempts to connect, which take the sources by turns
}

// limit is the time for a check: the configured one, and that of the round trips a check
// needs, so that a distant backend is not judged by its distance.
func (p *prober) limit() time.Duration {
	return p.cfg.Timeout + min(roundTrips*p.rtt, 3*p.cfg.Timeout)
}

const roundTrips = 3 // TCP, TLS, HTTP

// sawRoundTrip averages over some ten handshakes.
func (p *prober) sawRoundTrip(took time.Duration) {
	if p.rtt == 0 {
		p.rtt = took
	}
	p.rtt += (took - p.rtt) / 8
}

// probe runs one check on a new connection, until the deadline of ctx. A Result is
// meaningless when ctx was cancelled.
func (p *prober) probe(ctx context.Context) (r Result) {
	p.drop()
	conn, to := p.connect(ctx, &r)
	if conn == nil {
		return r
	}
	if p.cfg.Mode == TCP {
		conn.Close()
		r.Kind = KindOK
		return r
	}
	lift := limit(ctx, conn)
	c := p.handshake(conn, to, &r)
	if c == nil {
		lift()
		conn.Close()
		return r
	}
	lost := p.lost
	if lost == nil {
		lost = func() {}
	}
	p.line = &line{conn: c, to: to, request: p.request(to), expiry: r.CertExpiry}
	p.line.start(p.cfg.line(), lost)
	p.asked = time.Now()
	a, err := p.line.ask(ctx, lift)
	p.see(reply{a, err}, &r)
	if p.cfg.Interval >= p.cfg.line()/2 {
		p.drop()
	}
	return r
}

// limit ends the reading and writing of a connection with ctx. The function that it
// returns lifts the limit.
func limit(ctx context.Context, conn net.Conn) func() {
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if stop() {
			conn.SetDeadline(time.Time{})
		}
	}
}

// ask begins a check on the connection of the last one. The caller waits for an answer on
// line.answers or for the end, line.done, and then calls answered or unanswered. It needs
// no goroutine: the kernel has room for one request. It returns nil when a new connection
// has to tell: there is no old one, or the backend has just ended it.
func (p *prober) ask(deadline time.Time) *line {
	l := p.line
	if l == nil {
		return nil
	}
	p.asked = time.Now()
	to, err := p.addr()
	if err != nil || to != l.to || p.asked.After(p.tlsUntil) || !l.take() {
		return nil
	}
	l.conn.SetWriteDeadline(deadline) // were it to block for want of kernel memory
	_, err = l.conn.Write(l.request)
	l.conn.SetWriteDeadline(time.Time{})
	if err != nil {
		return nil
	}
	return l
}

// answered returns the result of a check that ask began, or false when only a new connection
// can tell: a backend may end one when it likes.
func (p *prober) answered(got reply) (r Result, told bool) {
	r = Result{Kept: true, CertExpiry: p.line.expiry}
	p.see(got, &r)
	return r, r.Kind != KindTLSError
}

// unanswered returns the result of a check that ask began and whose time is over.
func (p *prober) unanswered() Result {
	r, _ := p.answered(reply{err: os.ErrDeadlineExceeded})
	return r
}

// drop closes the connection of the last check, so that the next one makes a new one.
func (p *prober) drop() {
	if p.line != nil {
		p.line.close()
		p.line = nil
	}
}

// connect opens the TCP connection. On failure it returns nil and r has the reason.
func (p *prober) connect(ctx context.Context, r *Result) (net.Conn, netip.AddrPort) {
	to, err := p.addr()
	if err != nil {
		*r = Result{Kind: KindConnectError, ConnectPhase: true, Err: printable(err.Error())}
		return nil, to
	}
	start := time.Now()
	conn, err := p.dial(ctx, to)
	r.Connect = time.Since(start)
	if err == nil {
		if p.heard != nil {
			p.heard()
		}
		return conn, to
	}
	r.ConnectPhase = true
	p.fail(r, KindConnectError, "no connection", err)
	if r.Shortage = shortage(err); r.Shortage != 0 {
		r.NoVerdict = r.Err
	}
	return nil, to
}

// The kernel repeats a SYN after a second, which is the whole time of a check. So a check
// opens another connection beside one that is not answered, and then a third: a network
// that loses one packet in ten loses three SYNs or their answers in a row once in 150
// checks. secondTry is when, beyond the usual time of a handshake.
//
// A backend whose kernel has been silent for that long already is tried more often, so that
// its silence proves more: a network that loses one packet in ten does not lose six.
const (
	secondTry = 200 * time.Millisecond
	mostTries = 3
	nextTry   = secondTry / 2
	manyTries = 2 * mostTries
)

// pace is the time between two attempts to connect, and how many there are.
func (p *prober) pace() (between time.Duration, most int) {
	if p.eager {
		return max(nextTry, 2*p.rtt+nextTry/2), manyTries
	}
	return max(secondTry, 2*p.rtt+secondTry/2), mostTries
}

// dial returns the first connection that is answered. An error other than a timeout ends
// it at once.
func (p *prober) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the other attempts
	type try struct {
		conn net.Conn
		took time.Duration
		err  error
	}
	between, most := p.pace()
	tries := make(chan try, most)
	begin := func() {
		p.turn++
		go func(sources []netip.Addr) {
			start := time.Now()
			conn, err := dialFrom(ctx, sources, to)
			tries <- try{conn, time.Since(start), err}
		}(p.sources(to))
	}
	again := time.NewTicker(between)
	defer again.Stop()
	begin()
	for begun, left := 1, 1; ; {
		select {
		case t := <-tries:
			if left--; t.err == nil {
				p.sawRoundTrip(t.took)
			}
			if t.err == nil || left == 0 || !isTimeout(t.err) {
				cancel()
				for range left { // they end at once, but may have been answered, too
					if other := <-tries; other.conn != nil {
						other.conn.Close()
					}
				}
				return t.conn, t.err
			}
		case <-again.C:
			if begun < most {
				begun++
				left++
				begin()
			}
		}
	}
}

// handshake does the TLS handshake. On failure it returns nil and r has the reason.
func (p *prober) handshake(conn net.Conn, to netip.AddrPort, r *Result) net.Conn {
	start := time.Now()
	c := tls.Client(conn, p.tlsConfig(to))
	err := c.Handshake()
	r.TLS = time.Since(start)
	if err != nil {
		p.fail(r, KindTLSError, "no TLS answer", err)
		return nil
	}
	if certs := c.ConnectionState().PeerCertificates; len(certs) > 0 {
		r.CertExpiry = certs[0].NotAfter
	}
	return c
}

// tlsConfig returns the configuration of the last handshake, which holds the TLS session,
// until sessionLife is over, or half of it.
func (p *prober) tlsConfig(to netip.AddrPort) *tls.Config {
	name := p.name(to)
	if p.tls != nil && p.tls.ServerName == name && time.Now().Before(p.tlsUntil) {
		return p.tls
	}
	p.tlsUntil = time.Now().Add(spreadOf(sessionLife))
	p.tls = &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         name,
		RootCAs:            p.cfg.Roots,
		InsecureSkipVerify: p.cfg.Roots == nil,
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	if p.cfg.Certificate != nil {
		p.tls.Certificates = []tls.Certificate{*p.cfg.Certificate}
	}
	return p.tls
}

// name returns the name expected in the backend's certificate.
func (p *prober) name(to netip.AddrPort) string {
	if p.cfg.ServerName != "" {
		return p.cfg.ServerName
	}
	return to.Addr().Unmap().WithZone("").String()
}

// request is the request of a check.
func (p *prober) request(to netip.AddrPort) []byte {
	host := net.JoinHostPort(p.name(to), strconv.Itoa(int(to.Port())))
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: kthwd-lb\r\n\r\n", p.cfg.Path, host)
}

// see fills in the result that follows from the answer on the line. It ends a line that
// has not answered, or leaves it to the answer that may come late.
func (p *prober) see(got reply, r *Result) {
	r.HTTP = time.Since(p.asked)
	switch {
	case got.err == nil:
	case p.late != nil && isTimeout(got.err):
		p.late.wait(p.line)
		p.line = nil
	default:
		p.drop()
	}
	switch {
	case errors.Is(got.err, errNoHTTP):
		r.Kind, r.Err = KindBadStatus, printable(got.err.Error())
	case got.err != nil:
		p.fail(r, KindTLSError, "no answer to GET "+p.cfg.Path, got.err)
	default:
		r.Kind, r.Err = got.result(p.cfg.Path, p.cfg.Certificate != nil)
		r.Leaving = got.leaving
	}
}

// fail fills in the result of a failed phase. missing names the missing outcome; kind is
// the fallback.
func (p *prober) fail(r *Result, kind Kind, missing string, err error) {
	r.Kind, r.Err = kind, printable(cause(err))
	var bad *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case isTimeout(err):
		r.Kind, r.Err = KindTimeout, fmt.Sprintf("%s within %v", printable(missing), p.limit().Round(p.cfg.Timeout/10))
	case errors.As(err, &bad):
		r.Kind, r.Err = KindBadCert, printable(bad.Err.Error())
		if len(bad.UnverifiedCertificates) > 0 {
			r.CertExpiry = bad.UnverifiedCertificates[0].NotAfter
		}
	case refusesOurs(err):
		r.Kind, r.Err = KindBadCert, "the backend rejects the client certificate of the checks: "+r.Err
	case errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/":
		r.Err = "it speaks plain HTTP"
	case kind == KindTLSError && isEnd(err):
		r.Err = missing + ": " + r.Err
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// refusesOurs reports whether the backend ended TLS because of the client certificate or
// the lack of one. crypto/tls does not export the type of alerts; their text is in
// alert.go.
func refusesOurs(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate")
}

// cause removes the obvious from an error: "dial tcp" and the backend's address.
func cause(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Op != "remote error" {
		return op.Err.Error()
	}
	return err.Error()
}

// shortage returns the error if a connect failed because this machine is out of
// descriptors, memory or local ports, or NoSource; else 0.
func shortage(err error) syscall.Errno {
	if lacksSource(err) {
		return NoSource
	}
	for _, e := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
		syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EAGAIN,
	} {
		if errors.Is(err, e) {
			return e
		}
	}
	return 0
}

// maxLine limits a text in logs and in status, in runes.
const maxLine = 200

// printable makes foreign text printable: one line without control characters, cut at
// maxLine.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s[:min(len(s), 4*maxLine)])
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > maxLine {
		return string(r[:maxLine-1]) + "…"
	}
	return s
}
