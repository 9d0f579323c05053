// Package health is the plain HTTP bridge to the health endpoints of the local
// kube-apiserver. It replaces the nginx proxy of the tutorial, for load balancers and
// people whose checks use HTTP only.
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
// It answers GET and HEAD of three paths, with 200 and "ok" or with 503 and a one-line
// reason; ?verbose adds one line per check.
//
//	/healthz, /readyz   the apiserver's /readyz, once Local agrees
//	/livez              the apiserver's /livez, whatever Local says
//
// The tutorial uses /healthz, but the bridge does not query the apiserver's /healthz:
// during --shutdown-delay-duration that stays 200 and only /readyz fails, so a balancer
// that follows /healthz would send clients to a server that is about to stop.
//
// The bridge fails closed: anything but a complete 200, in time, from a server whose
// certificate the CA has signed is a 503. It probes only on request. Concurrent requests
// share one probe, and its verdict, good or bad, is kept for Interval. Every probe uses a
// new connection with a full TLS handshake, so that neither a kept connection nor a
// resumed session can hide a closed listener or an expired certificate. A probe costs
// both ends together about 5 ms of CPU with RSA-2048 keys.
//
// All its answers are public. Reasons consist of the status code, the names of failed
// checks and fixed phrases; no other part of the apiserver's answer is passed on.
//
// It does not retry, does not smooth (a balancer has its own rise and fall counts) and
// does not look at other controllers.
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

	"kthwd/health/conns"
)

// A Config configures a Bridge.
type Config struct {
	// Address is the address to listen on, host:port. Empty means that of Default.
	Address string

	// ServerName restricts the bridge to requests for this host, ignoring port,
	// case and a final dot; requests for other hosts get 421. Empty means any
	// host, which a balancer that checks by address requires.
	ServerName string

	// Target is the URL of the local apiserver: https://host[:port] and nothing
	// more. Its certificate must name the host. Empty means that of Default.
	Target string

	// CAFile is the PEM bundle that must have signed the apiserver's
	// certificate. It is required; the system's roots are never used.
	CAFile string

	// CertFile and KeyFile are the client certificate shown to the apiserver.
	// It needs no rights: system:public-info-viewer lets any authenticated user
	// read /readyz and /livez. Both empty means anonymous requests.
	//
	// The three files are read for each probe, so changes apply at once. While
	// they do not fit together (a new certificate, still the old key), the last
	// good set is used and one warning is logged.
	CertFile, KeyFile string

	// Timeout limits one probe from dial to the end of the answer. Zero means
	// that of Default, 1s, as in package lb. The apiserver's own etcd check may
	// take 2s (--etcd-readycheck-timeout): with a longer Timeout, a stuck etcd is
	// reported by name instead of as a missing answer. Keep Timeout below the
	// timeout of the clients.
	Timeout time.Duration

	// Interval is how long a verdict is kept, counted from the end of the probe;
	// /readyz and /livez are each probed at most once in that time. Zero means that
	// of Default, 1s.
	Interval time.Duration

	// Local returns kthwd's own readiness: false, with a reason, makes /healthz and
	// /readyz answer 503 without a probe. Nil means always ready. It is called for
	// each request and must not block; its reason is public.
	Local func() (ready bool, reason string)

	// Components lists kthwd's components for ?verbose. They do not affect the
	// status code. Nil means none. The list is public.
	Components func() []Check

	// Log gets one line for each change of verdict. Nil logs nothing.
	Log *slog.Logger
}

// A Check is one line of a ?verbose answer.
type Check struct {
	Name   string
	OK     bool
	Reason string // the reason it is not OK, or a remark such as "standby"; one line, may be empty
}

// Default returns the configuration of the tutorial's bridge, without the files.
func Default() Config {
	return Config{
		Address:  ":80",
		Target:   "https://127.0.0.1:6443",
		Timeout:  time.Second,
		Interval: time.Second,
	}
}

// withDefaults returns c with defaults in place of zero values.
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

// Validate returns every fault of c as one joined error. It does not open the files; the
// probes do.
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

// targetAddress returns the host:port to dial for a target URL.
func targetAddress(target string) (string, error) {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" ||
		(u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
		// The URL is not repeated: it may contain a password.
		return "", errors.New("target: want https://host[:port]")
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// Limits for clients. An honest client sends a few hundred bytes at once and reads a
// short answer.
const (
	maxConns       = 512              // open connections; see package conns
	headerTimeout  = 5 * time.Second  // from accept to the end of the request
	idleTimeout    = 30 * time.Second // longer than the interval of common balancers
	maxHeaderBytes = 8 << 10
)

// A Bridge answers health requests over plain HTTP. Create one with New. It is a
// component (Name, Run) and, for use in another server, an http.Handler.
type Bridge struct {
	cfg         Config
	invalid     error // fault of the configuration: Run returns it, and every answer is 503
	ready, live *probe
	conns       *conns.Limit
	count       counters

	now           func() time.Time // clock for the age of verdicts; tests replace it
	headerTimeout time.Duration

	mu   sync.Mutex
	base context.Context // parent of every probe's context; Run cancels it
	addr net.Addr
}

// New creates a Bridge. It does no I/O; Run returns the error of an invalid
// configuration.
func New(cfg Config) *Bridge {
	b := &Bridge{
		invalid:       cfg.Validate(),
		cfg:           cfg.withDefaults(),
		conns:         conns.New(maxConns),
		now:           time.Now,
		headerTimeout: headerTimeout,
		base:          context.Background(),
	}
	up := newUpstream(b.cfg)
	b.ready = &probe{b: b, up: up, path: "/readyz"}
	b.live = &probe{b: b, up: up, path: "/livez"}
	return b
}

// Name implements supervise.Component.
func (b *Bridge) Name() string { return "health" }

// Addr returns the listening address, with the actual port for ":0"; nil before Run has
// called ready.
func (b *Bridge) Addr() net.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addr
}

// Run listens, calls ready and serves until ctx is done. It calls ready even while the
// apiserver is down. It returns nil after a stop, else the error of listening or serving.
// Requests in progress have Timeout plus one second to end, then they are cut. When Run
// returns, everything it started has ended. Only one Run at a time; another may follow.
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

// stop ends srv, its connections and the probes. A probe under way ends within Timeout,
// and requests that wait for it are still answered.
func (b *Bridge) stop(srv *http.Server, stopProbes func()) {
	ctx, cancel := context.WithTimeout(context.Background(), b.cfg.Timeout+time.Second)
	defer cancel()
	b.conns.CloseWaiting() // or Shutdown waits 5s for connections that have sent nothing
	if err := srv.Shutdown(ctx); err != nil {
		b.cfg.Log.Warn("requests cut", "err", err)
		srv.Close()
	}
	stopProbes()
	// After the budget only a hung disk can be left, which is not waited for.
	over, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	b.conns.Wait(over)
	b.ready.wait(over)
	b.live.wait(over)
}

// server returns an HTTP server with every limit set: net/http has no default limits.
func (b *Bridge) server() *http.Server {
	return &http.Server{
		Handler:                      b,
		ReadHeaderTimeout:            b.headerTimeout,
		ReadTimeout:                  b.headerTimeout,
		WriteTimeout:                 b.headerTimeout + 2*b.cfg.Timeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true, // OPTIONS * is a 404 as well
		ConnState:                    b.conns.Track,
		ErrorLog:                     slog.NewLogLogger(b.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// lifetime returns the parent of a probe's context.
func (b *Bridge) lifetime() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.base
}
