// Package health is the plain-HTTP bridge to the local kube-apiserver's health
// endpoints. It replaces the nginx proxy of the tutorial, for load balancers and
// people whose checks speak HTTP only.
//
//	b := health.New(health.Config{
//		Address:  ":80",
//		CAFile:   "/var/lib/kubernetes/ca.pem",
//		CertFile: "/var/lib/kubernetes/kthwd-health.pem", // an identity without rights
//		KeyFile:  "/var/lib/kubernetes/kthwd-health-key.pem",
//		Local:    status.Ready,
//	})
//	err := b.Run(ctx, ready) // blocks
//
// It answers GET and HEAD of three paths, 200 with "ok" or 503 with one line that
// says why; ?verbose adds one line per check.
//
//	/healthz, /readyz   the apiserver's /readyz, once Local agrees
//	/livez              the apiserver's /livez, whatever Local says
//
// /healthz is the path the tutorial uses, but it is not asked upstream: during
// --shutdown-delay-duration the apiserver's /healthz stays 200 and only /readyz
// fails, so a balancer that follows /healthz would send clients to a server that is
// about to leave.
//
// The bridge fails closed: what is not a 200 from a server that the CA vouches for,
// read to its end in time, is a 503. It probes only when somebody asks, and however
// many ask at once, they share one probe; its verdict, good or bad, is kept for
// Interval. Every probe is a connection of its own with a full TLS handshake: neither a
// kept connection nor a resumed session can hide a listener that is gone or a certificate
// that has expired. It costs both ends together some 5 ms of CPU with RSA-2048 keys.
//
// What it says is public. Reasons are made from the status code, the names of failed
// checks and a fixed set of phrases; nothing else of an upstream answer is passed on.
//
// It does not retry, does not smooth (a balancer has its own rise and fall counts)
// and knows nothing of other controllers.
package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// A Config says where the bridge listens and whom it asks.
type Config struct {
	// Address is where to listen, host:port. Empty means that of Default.
	Address string

	// ServerName restricts the bridge to requests for this host; the port, the
	// case and a final dot are ignored, other hosts get 421. Empty means any
	// host, which a balancer that checks by address needs.
	ServerName string

	// Target is the local apiserver: https://host[:port] and nothing more. The
	// host must be in its certificate. Empty means that of Default.
	Target string

	// CAFile is the PEM bundle that must have signed the apiserver's
	// certificate. It is required; the system's roots are never used.
	CAFile string

	// CertFile and KeyFile are the client certificate shown to the apiserver.
	// It needs no rights: system:public-info-viewer lets any authenticated user
	// read /readyz and /livez. Both empty means to ask anonymously.
	//
	// The three files are read for each probe and used as soon as they change.
	// While a change does not fit together (a new certificate, still the old
	// key), the last good set is used and one warning is logged.
	CertFile, KeyFile string

	// Timeout bounds one probe from dial to the end of the answer. Zero means
	// that of Default, 1s, as in package lb. The apiserver's own etcd check may
	// take 2s (--etcd-readycheck-timeout): above that, a stuck etcd is reported
	// by name instead of as a missing answer. Keep it below the timeout of
	// whoever asks.
	Timeout time.Duration

	// Interval is how long a verdict is kept, counted from its end; each of
	// /readyz and /livez is asked at most once in that time. Zero means that of
	// Default, 1s.
	Interval time.Duration

	// Local is kthwd's own record: false, with the reason, makes /healthz and
	// /readyz answer 503 without asking the apiserver. Nil means always ready.
	// It is called for each request and must not block; its reason is public.
	Local func() (ready bool, reason string)

	// Components lists kthwd's components for ?verbose. They inform and do not
	// change the status code. Nil means none. As public as Local.
	Components func() []Check

	// Log gets one line for each change of verdict. Nil means none.
	Log *slog.Logger
}

// A Check is one line of a ?verbose answer.
type Check struct {
	Name   string
	OK     bool
	Reason string // why not OK, or a remark such as "standby"; one line, may be empty
}

// Default is the bridge of the tutorial, without the files.
func Default() Config {
	return Config{
		Address:  ":80",
		Target:   "https://127.0.0.1:6443",
		Timeout:  time.Second,
		Interval: time.Second,
	}
}

// withDefaults fills in what was left zero.
func (c Config) withDefaults() Config {
	d := Default()
	if c.Address == "" {
		c.Address = d.Address
	}
	if c.Target == "" {
		c.Target = d.Target
	}
	if c.Timeout <= 0 {
		c.Timeout = d.Timeout
	}
	if c.Interval <= 0 {
		c.Interval = d.Interval
	}
	if c.Local == nil {
		c.Local = func() (bool, string) { return true, "" }
	}
	if c.Components == nil {
		c.Components = func() []Check { return nil }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate says what is wrong with c, all of it at once. Whether the files are
// usable is found out later, by the probes.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		errs = append(errs, fmt.Errorf("address %q: want host:port", c.Address))
	}
	if _, err := targetAddress(c.Target); err != nil {
		errs = append(errs, err)
	}
	if c.CAFile == "" {
		errs = append(errs, errors.New("no CA file to verify the apiserver with"))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, fmt.Errorf("certificate %q and key %q: give both or neither", c.CertFile, c.KeyFile))
	}
	return errors.Join(errs...)
}

// targetAddress is the host:port to dial for a target URL.
func targetAddress(target string) (string, error) {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" ||
		(u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
		// Not the text itself: it may hold a password.
		return "", errors.New("target: want https://host[:port]")
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// Limits of the listening side. An honest asker sends some hundred bytes at once
// and reads a short answer.
const (
	maxConns       = 512              // open connections; see conns
	headerTimeout  = 5 * time.Second  // from accept to the end of the request
	idleTimeout    = 30 * time.Second // longer than the interval of common balancers
	maxHeaderBytes = 8 << 10
)

// A Bridge answers health questions over plain HTTP. Make one with New; it is a
// component (Name, Run) and, for embedding elsewhere, an http.Handler.
type Bridge struct {
	cfg         Config
	invalid     error // of the configuration; Run returns it, every answer is 503
	ready, live *probe
	conns       *conns
	count       counters

	now           func() time.Time // for the age of verdicts; tests replace it
	headerTimeout time.Duration

	mu   sync.Mutex
	base context.Context // parent of every probe; ended by Run
	addr net.Addr
}

// New makes a bridge. It does no I/O; an invalid configuration is Run's error.
func New(cfg Config) *Bridge {
	b := &Bridge{
		invalid:       cfg.Validate(),
		cfg:           cfg.withDefaults(),
		conns:         newConns(maxConns),
		now:           time.Now,
		headerTimeout: headerTimeout,
		base:          context.Background(),
	}
	up := newUpstream(b.cfg)
	b.ready = &probe{b: b, up: up, path: "/readyz"}
	b.live = &probe{b: b, up: up, path: "/livez"}
	return b
}

// Name is "health".
func (b *Bridge) Name() string { return "health" }

// Addr is where the bridge listens, with the port that was chosen for ":0"; nil
// before Run has called ready.
func (b *Bridge) Addr() net.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addr
}

// Run listens, calls ready and serves until ctx is done; whether the apiserver is
// up does not matter for ready. It returns nil after a stop, else why it could not
// listen or serve. Requests in progress get the Timeout of a probe and a second to
// end, then are cut; when Run returns, nothing it started is left. One Run at a
// time; a further Run may follow.
func (b *Bridge) Run(ctx context.Context, ready func()) error {
	if b.invalid != nil {
		return b.invalid
	}
	ln, err := net.Listen("tcp", b.cfg.Address)
	if err != nil {
		return err // names the address
	}
	base, stopProbes := context.WithCancel(context.WithoutCancel(ctx))
	defer stopProbes()
	b.mu.Lock()
	b.base, b.addr = base, ln.Addr()
	b.mu.Unlock()

	srv := b.server()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	b.cfg.Log.Info("listening", "addr", ln.Addr().String())
	ready()

	select {
	case <-ctx.Done():
		b.stop(srv, stopProbes)
		<-served
		return nil
	case err := <-served:
		b.stop(srv, stopProbes)
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
}

// stop ends srv and all that belongs to it. A probe in flight ends by itself within
// Timeout, and those who wait for it are still answered.
func (b *Bridge) stop(srv *http.Server, stopProbes func()) {
	ctx, cancel := context.WithTimeout(context.Background(), b.cfg.Timeout+time.Second)
	defer cancel()
	b.conns.closeWaiting() // else Shutdown waits 5s for those that have sent nothing
	if err := srv.Shutdown(ctx); err != nil {
		b.cfg.Log.Warn("requests cut", "err", err)
		srv.Close()
	}
	stopProbes()
	// Past the budget only a hung disk is left to wait for, and nobody does.
	over, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	b.conns.wait(over)
	b.ready.wait(over)
	b.live.wait(over)
}

// server has every limit set: net/http has none of its own.
func (b *Bridge) server() *http.Server {
	return &http.Server{
		Handler:                      b,
		ReadHeaderTimeout:            b.headerTimeout,
		ReadTimeout:                  b.headerTimeout,
		WriteTimeout:                 b.headerTimeout + 2*b.cfg.Timeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true, // OPTIONS * is a 404 as well
		ConnState:                    b.conns.track,
		ErrorLog:                     slog.NewLogLogger(b.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// lifetime is the parent of a probe's context.
func (b *Bridge) lifetime() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.base
}
