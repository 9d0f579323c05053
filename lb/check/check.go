// Package check finds out whether one backend of a load balancer can take connections. A
// Checker probes the backend at intervals, learns of failed connects from the data path,
// and keeps one Status.
//
//	c := check.New(check.Config{Mode: check.HTTPS, Path: "/readyz", …}, addr, check.Observer{Changed: changed})
//	go c.Run(ctx)
//	…
//	c.ConnectFailed("connection refused") // a client's connection could not be made
//	c.Status().State                      // Ready, NotReady, Dead or Unknown
//
// There are three verdicts, because each calls for a different action. Ready: give it
// new connections. NotReady: it answers, but not with status 200 or with a certificate
// that does not verify; give it no new connections and keep the old ones. Dead: it does
// not answer at all; its connections may be cut when another backend can take them.
// Suspect is not a verdict but a hint at the first bad sign: prefer other backends for
// new connections, cut nothing. A wrong hint costs nothing.
//
// Callers may rely on these rules: a state needs Fall or Rise consecutive results, except
// that the first state after New comes sooner; a backend that falls repeatedly is held
// down for longer each time; a failure observed while this process was short of CPU or of
// descriptors proves nothing about the backend and is dropped.
//
// A check is cheap as long as all is well: those of several backends begin at the same
// moments, ten in a second; several in a row use one connection, and a new one resumes the
// TLS session. A check uses a new connection when the last one failed or a client's
// connect has, when the backend has ended the old one, and every 10 to 20 s, since only
// that shows that the backend accepts connections. Every 30 to 60 s it does a whole
// handshake, since only that shows the certificate. The end of an idle connection is a
// sign that the backend has died, and brings a check at once.
//
// Call New, then Run once; Status, ConnectFailed and ConnectOK may be called at any time,
// even before and after Run. The package chooses no backend, closes no client's
// connection, resolves no name and keeps no history. It reads no file either, so new
// certificates require a new Checker.
package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Mode is the way to check a backend.
type Mode string

// The modes.
const (
	HTTPS Mode = "https" // a GET of Path over TLS, on a connection that is kept for some seconds: distinguishes all states
	TCP   Mode = "tcp"   // opens a connection and closes it: a stopped process passes, because its kernel answers
	None  Mode = "none"  // relies on ConnectFailed and ConnectOK; State is always Ready
)

// Kind is the result of one check.
type Kind string

// The kinds. The first leads to Ready, the next three to NotReady, the others to Dead.
const (
	KindOK           Kind = "ok"
	KindNotReady     Kind = "not_ready"     // status 500, 503 or 429
	KindBadStatus    Kind = "bad_status"    // another status than these and 200, or an answer that is not HTTP
	KindBadCert      Kind = "bad_cert"      // its certificate does not verify, or it rejects the client certificate
	KindConnectError Kind = "connect_error" // refused, unreachable, or a name without an address
	KindTLSError     Kind = "tls_error"     // no TLS, or the connection ended before the answer
	KindTimeout      Kind = "timeout"       // no answer within Timeout, in whichever phase
)

// Kinds lists all kinds, for counting them.
var Kinds = []Kind{KindOK, KindNotReady, KindConnectError, KindTLSError, KindTimeout, KindBadStatus, KindBadCert}

// State is the verdict on a backend.
type State string

// The states.
const (
	Unknown  State = "unknown" // until the first verdict
	Ready    State = "ready"
	NotReady State = "not_ready"
	Dead     State = "dead"
)

// Config configures a Checker. The zero value does not work: Mode, Interval, Timeout,
// Fall and Rise must be set, and Path for HTTPS. New does not validate it.
type Config struct {
	Backend     string           // name of the backend in log lines; "" means the address
	Mode        Mode             //
	Path        string           // path that HTTPS requests; without spaces and control characters
	Interval    time.Duration    // from the start of one check to the next, jittered by 10 %
	Line        time.Duration    // how long a connection carries check after check; 0 means LineLife
	Hold        time.Duration    // how long the first hold-down lasts; 0 means 5 s
	Late        time.Duration    // how long LateAnswer counts an answer after the end of its check; 0 means not at all
	Timeout     time.Duration    // limit of one check: connect, TLS, answer; three usual round trips are added
	Fall        int              // consecutive bad results that end Ready
	Rise        int              // consecutive good results that restore Ready
	Roots       *x509.CertPool   // CAs that verify the backend's certificate; nil verifies nothing
	ServerName  string           // name in the backend's certificate; "" means the address
	Sources     []netip.Addr     // checks come from those that have the family of the backend, by turns; empty leaves it to the kernel
	Certificate *tls.Certificate // client certificate of the checks; nil sends none
	Log         *slog.Logger     // gets one line for each change of State; nil logs nothing
}

func (c Config) line() time.Duration { return cmp.Or(c.Line, LineLife) }

// Result is the result of one check.
type Result struct {
	Kind         Kind
	Connect      time.Duration // time to the TCP connection, or to its failure
	TLS          time.Duration // time of the handshake; 0 when there was none
	HTTP         time.Duration // time from the request to the end of the answer; 0 when there was no request
	Err          string        // the reason it is not ok: one printable line without secrets; "" for KindOK
	CertExpiry   time.Time     // expiry of the backend's certificate, verified or not; zero when none was seen
	ConnectPhase bool          // the check failed before there was a TCP connection
	Kept         bool          // the check used the connection of an earlier one; Connect and TLS are 0
	Leaving      bool          // the backend answered that it is about to stop

	// NoVerdict is the reason this failure does not count against the backend: this
	// process got no CPU or no descriptor. "" for a result that counts.
	NoVerdict string

	// Shortage is the resource of this machine that was lacking; 0 when none was. An
	// immediate retry would meet it again.
	Shortage syscall.Errno
}

// Status is the state of a backend. Two can be compared with ==.
type Status struct {
	State         State
	Since         time.Time   // time of the last change of State
	Held          bool        // its checks pass again, and it is held down because it has fallen repeatedly
	Reason        string      // reason of the last change, "bad_cert: x509: …", or a note that it is held down
	Last          Kind        // kind of the last check that counted; "" before the first
	LastReason    string      // reason that check was not ok; "" when it was
	FailingSince  time.Time   // end of the first of the checks in a row that got no answer; zero when the last one did
	Suspect       bool        // the last check was not ok, or ConnectFailed was called since the last ok check started
	SuspectReason string      // reason for Suspect; "" when not Suspect
	Connectable   bool        // the last check got a TCP connection; with None, not Suspect
	Leaving       bool        // the last answer to a check said that the backend is about to stop
	CertExpiry    time.Time   // expiry of the last certificate seen
	Transitions   Transitions // since New
	Late          uint64      // failures since New that were dropped because this process was late or out of descriptors
}

// Transitions counts changes of State by the new state.
type Transitions struct{ Ready, NotReady, Dead uint64 }

// Observer receives the findings of a Checker, in Run's goroutine: calls never overlap,
// and a call that blocks delays the checks. Each function may be nil.
type Observer struct {
	// Changed is called after each change of State, Suspect, Connectable or Leaving, by a check
	// or by ConnectFailed. Changes that cancel out before the call are left out. The
	// first call reports the first change after New.
	Changed func(Status)
	// Checked is called after each check, before Changed.
	Checked func(Result)
}

// A Checker checks one backend. Create it with New.
type Checker struct {
	cfg      Config
	addr     func() (netip.AddrPort, error)
	observer Observer
	log      *slog.Logger

	kept   *prober                      // whose last connection may carry a check
	probe  func(context.Context) Result // a check on a new connection
	usual  func() time.Duration         // a round trip; called between checks
	limit  func() time.Duration         // of one check; called between checks
	jitter func(time.Duration) time.Duration
	spread func(time.Duration) time.Duration // of the second check
	moment time.Time                         // one of those at which checks of several backends begin
	quiet  time.Duration                     // after a check that the end of an idle connection brought
	renew  func()                            // makes the next check use a new connection; called between checks

	lost     chan struct{} // signals that the backend ended an idle connection; holds one
	kick     chan struct{} // signals a call of ConnectFailed or ConnectOK; holds one
	mu       sync.Mutex
	m        machine
	waiting  atomic.Int64 // when the backend's kernel began to owe a sign of life, less usual round trips; nanoseconds since anyMoment, 0 when it owes none
	doubtful atomic.Bool  // mode None: a connect has failed since the last ConnectOK

	// Used by Run's goroutine only.
	plan      plan
	alarm     *time.Timer
	reported  news
	spreadOut bool      // the second check is planned
	lostUntil time.Time // until then, the end of a connection brings no check
}

// news is the part of a Status whose changes are reported to Changed.
type news struct {
	state                State
	suspect, connectable bool
	leaving              bool
}

// New creates a Checker; it does nothing before Run. addr returns the present address of
// the backend. It is called before each check, in a goroutine started by Run, and should
// return from memory. Its error counts as a connect_error, which leads to Dead: for a
// name that no longer resolves, return the last address.
func New(cfg Config, addr func() (netip.AddrPort, error), o Observer) *Checker {
	c := &Checker{
		cfg: cfg, addr: addr, observer: o, log: cfg.Log,
		jitter:   jitter,
		spread:   func(d time.Duration) time.Duration { return time.Duration(rand.Float64() * float64(d)) },
		moment:   anyMoment,
		quiet:    cfg.line(),
		kick:     make(chan struct{}, 1),
		lost:     make(chan struct{}, 1),
		reported: news{state: Unknown},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	p := &prober{cfg: cfg, addr: addr, late: newLate(cfg.Late), lost: func() { signal(c.lost) }, heard: c.heard}
	c.kept, c.probe, c.limit, c.renew = p, p.probe, p.limit, p.drop
	c.usual = func() time.Duration { return p.rtt }
	c.m = newMachine(cfg, time.Now())
	return c
}

// jitter keeps the checks of several balancers from falling into step.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// Status returns a copy of the present status. It does not block.
func (c *Checker) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m.snapshot(time.Now())
}

// ConnectFailed reports that a client's connection to the backend was refused or timed
// out. The backend is Suspect when it returns, and a check follows at once. It is cheap,
// never blocks, and may be called from any goroutine. Failures of this process, such as a
// lack of descriptors, must not be reported.
func (c *Checker) ConnectFailed(reason string) {
	c.mu.Lock()
	c.m.connectFailed(reason, time.Now())
	c.doubtful.Store(c.cfg.Mode == None)
	c.mu.Unlock()
	c.wake()
}

// ConnectOK reports an established connection. Only mode None uses it; in other modes,
// and without a preceding failure, it costs one atomic load.
func (c *Checker) ConnectOK() {
	if !c.doubtful.Load() {
		return
	}
	c.mu.Lock()
	c.m.connectOK()
	c.doubtful.Store(false)
	c.mu.Unlock()
	c.wake()
}

// Unheard returns how long checks have waited for any sign of life of the backend's kernel:
// an acknowledgement of a request, or an answer to a SYN, be it a refusal. The usual time
// of the round trips is left out. It is 0 when the last check had such a sign, whatever
// the verdict. It takes part in no verdict.
func (c *Checker) Unheard(now time.Time) time.Duration {
	since := c.waiting.Load()
	if since == 0 {
		return 0
	}
	return max(0, now.Sub(anyMoment)-time.Duration(since))
}

// await notes that a check has asked the backend at a time.
func (c *Checker) await(at time.Time) {
	c.waiting.CompareAndSwap(0, max(1, int64(at.Add(roundTrips*c.usual()).Sub(anyMoment))))
}

// heard notes a sign of life.
func (c *Checker) heard() { c.waiting.Store(0) }

// Hurry makes a check start at once, but no sooner than 200 ms after the last that did. It
// never blocks, and may be called from any goroutine.
func (c *Checker) Hurry() { c.wake() }

func (c *Checker) wake() { signal(c.kick) }

func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}
