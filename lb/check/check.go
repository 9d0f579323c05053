// Package check finds out whether one backend of a load balancer can be given
// connections. A Checker asks the backend again and again, hears from the data path
// about connects that failed, and keeps one Status.
//
//	c := check.New(check.Config{Mode: check.HTTPS, Path: "/readyz", …}, addr, check.Observer{Changed: changed})
//	go c.Run(ctx)
//	…
//	c.ConnectFailed("connection refused") // a client's connection could not be made
//	c.Status().State                      // Ready, NotReady, Dead or Unknown
//
// There are three verdicts, because they ask for different things. Ready: give it new
// connections. NotReady: it answers, but with no 200 or with a certificate that does
// not verify; give it no new connections and leave the old ones alone. Dead: it does
// not answer at all; its connections may be cut when another backend can take them.
// Suspect is no verdict but a hint that comes with the first bad sign: prefer others
// for new connections, cut nothing. It costs nothing when it was wrong.
//
// Rules that the rest relies on: a state needs Fall or Rise results in a row, only the
// first one after New comes sooner; a backend that falls again and again is held down
// for longer each time; a failure seen while this process was short of CPU or of
// descriptors says nothing about the backend and is dropped.
//
// Call New, then Run once; Status, ConnectFailed and ConnectOK may be called at any
// time, before Run and after it too. The package chooses no backend, closes no client's
// connection, resolves no name and keeps no history; it reads no file either, so new
// certificates mean a new Checker.
package check

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Mode is the way to check a backend.
type Mode string

// The modes.
const (
	HTTPS Mode = "https" // a new connection, TLS, and GET of Path: all states are told apart
	TCP   Mode = "tcp"   // a connection that is closed again: a stopped process passes, its kernel answers
	None  Mode = "none"  // only what ConnectFailed and ConnectOK say; State is always Ready
)

// Kind is the result of one check.
type Kind string

// The kinds. The first one leads to Ready, the next three to NotReady, the others to
// Dead.
const (
	KindOK           Kind = "ok"
	KindNotReady     Kind = "not_ready"     // status 500, 503 or 429
	KindBadStatus    Kind = "bad_status"    // a status that is none of these and not 200, or an answer that is no HTTP
	KindBadCert      Kind = "bad_cert"      // its certificate does not verify, or it does not accept ours
	KindConnectError Kind = "connect_error" // refused, unreachable, or a name without an address
	KindTLSError     Kind = "tls_error"     // no TLS, or the connection ended before the answer
	KindTimeout      Kind = "timeout"       // no answer within Timeout, in whichever phase
)

// Kinds are all of them, for those who count them.
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

// Config says how to check. The zero value is of no use: Mode, Interval, Timeout,
// Fall and Rise must be set, and Path for HTTPS. It is not validated here.
type Config struct {
	Backend     string           // its name in log lines; "" means the address
	Mode        Mode             //
	Path        string           // what HTTPS asks for; without spaces and control characters
	Interval    time.Duration    // between the starts of two checks, jittered by 10 %
	Timeout     time.Duration    // one whole check: connect, TLS, answer
	Fall        int              // bad results in a row that take Ready away
	Rise        int              // good results in a row that give it back
	Roots       *x509.CertPool   // the backend's certificate is verified against them; nil verifies nothing
	ServerName  string           // the name in it; "" means the address
	Certificate *tls.Certificate // client certificate that checks show; nil shows none
	Log         *slog.Logger     // one line for each change of State; nil for none
}

// Result is what one check has found.
type Result struct {
	Kind         Kind
	Connect      time.Duration // to the TCP connection, or to the failure of it
	TLS          time.Duration // to the end of the handshake; 0 when there was none
	HTTP         time.Duration // to the end of the answer; 0 when nothing was asked
	Err          string        // why it is not ok: one printable line without secrets; "" for KindOK
	CertExpiry   time.Time     // of the backend's certificate, verified or not; zero when none was seen
	ConnectPhase bool          // it failed before there was a TCP connection

	// NoVerdict says why this failure is not held against the backend: this process
	// got no CPU, or no descriptor. "" for a result that counts.
	NoVerdict string

	ours bool // NoVerdict, and it will not go away by asking again at once
}

// Status is what is known about a backend. Two can be compared with ==.
type Status struct {
	State         State
	Since         time.Time   // when State became so
	Reason        string      // why State became so: "bad_cert: x509: …"; or that it is held down
	Last          Kind        // of the last check that counted; "" before it
	Suspect       bool        // the last check was not ok, or ConnectFailed was called since the last ok one began
	SuspectReason string      // why; "" when not Suspect
	Connectable   bool        // the last check got a TCP connection; with None, not Suspect
	CertExpiry    time.Time   // of the last certificate seen
	Transitions   Transitions // since New
	Late          uint64      // failures that were no verdict, because this process was late or out of descriptors, since New
}

// Transitions counts changes of State by what it changed to.
type Transitions struct{ Ready, NotReady, Dead uint64 }

// Observer is told what a Checker finds, from the goroutine of Run: calls never
// overlap, and one that blocks delays the checks. Each may be nil.
type Observer struct {
	// Changed is called after each change of State, Suspect or Connectable, whether a
	// check or ConnectFailed made it. Changes that undo each other before the call are
	// left out. The first call is the first news after New.
	Changed func(Status)
	// Checked is called after each check, before Changed.
	Checked func(Result)
}

// A Checker checks one backend. Make it with New.
type Checker struct {
	cfg      Config
	addr     func() (netip.AddrPort, error)
	observer Observer
	log      *slog.Logger

	probe  func(context.Context) Result
	jitter func(time.Duration) time.Duration

	kick     chan struct{} // ConnectFailed or ConnectOK changed something; holds one
	mu       sync.Mutex
	m        machine
	doubtful atomic.Bool // mode None: there were failures since the last ConnectOK

	// Of Run's goroutine only.
	plan plan
	told news
}

// news is the part of a Status that Changed is called for.
type news struct {
	state                State
	suspect, connectable bool
}

// New makes a Checker; nothing happens before Run. addr says where the backend is now.
// It is called before each check, from a goroutine of Run's, and should answer from
// memory. Its error is a connect_error, which leads to Dead: for a name that no longer
// resolves, give the last address.
func New(cfg Config, addr func() (netip.AddrPort, error), o Observer) *Checker {
	c := &Checker{
		cfg: cfg, addr: addr, observer: o, log: cfg.Log,
		jitter: jitter,
		kick:   make(chan struct{}, 1),
		told:   news{state: Unknown},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.probe = (&prober{cfg: cfg, addr: addr}).probe
	c.m = newMachine(cfg, time.Now())
	return c
}

// jitter keeps the checks of several balancers from falling into step.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// Status is a copy of what is known now. It does not block.
func (c *Checker) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m.snapshot(time.Now())
}

// ConnectFailed is how the data path reports that a connection to the backend was
// refused or timed out. The backend is Suspect when it returns, and a check follows
// at once. It is cheap, never blocks, and may be called from any goroutine. Failures
// that are our own, as having no descriptor left, must not be reported.
func (c *Checker) ConnectFailed(reason string) {
	c.mu.Lock()
	c.m.connectFailed(reason, time.Now())
	c.doubtful.Store(c.cfg.Mode == None)
	c.mu.Unlock()
	c.wake()
}

// ConnectOK is how the data path reports a connection that was made. Only mode None
// learns from it; with the others, and while all is well, it is one load.
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

func (c *Checker) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}
