package lb

import (
	"slices"
	"time"

	"kthwd/lb/check"
	"kthwd/lb/names"
)

// Status is the state of a load balancer, for people and programs.
type Status struct {
	Ready       bool             `json:"ready"`            // accepting and not stopping
	Reason      string           `json:"reason,omitempty"` // the reason it is not ready, one line
	Serves      bool             `json:"serves"`           // some backend can be given connections; damped (serving.go)
	FailOpen    bool             `json:"failOpen"`         // no backend is ready, and none passes its checks while it is held down, so any backend is used
	Connections int              `json:"connections"`
	Held        int              `json:"held"` // clients waiting for a backend
	Listen      []ListenerStatus `json:"listeners"`
	Backends    []BackendStatus  `json:"backends"`
	Names       []NameStatus     `json:"names,omitempty"`  // the configured names that stand for backends
	Limits      []LimitStatus    `json:"limits,omitempty"` // those reached in the last minute
	Verified    bool             `json:"verified"`         // checks verify certificates
	Check       string           `json:"check"`

	Discovery *DiscoveryStatus `json:"discovery,omitempty"` // set by the caller; nil without discovery
}

// DiscoveryStatus is the state of following the list of backends.
type DiscoveryStatus struct {
	Server      string    `json:"server,omitempty"` // the API server being watched; "" for none
	Since       time.Time `json:"since"`            // when Error appeared or vanished
	LastSuccess time.Time `json:"lastSuccess"`      // last list or event; zero for never
	Error       string    `json:"error,omitempty"`  // the reason none is watched, one line

	Certificate *CertificateStatus `json:"certificate,omitempty"` // that the discovery renews by itself; nil for none
}

// CertificateStatus is a certificate that is renewed.
type CertificateStatus struct {
	Ends    time.Time `json:"ends"`
	Due     time.Time `json:"due"`             // when it is renewed
	Error   string    `json:"error,omitempty"` // why it was not, one line
	Advice  string    `json:"advice,omitempty"`
	Since   time.Time `json:"since,omitzero"` // of Error
	Renewed int64     `json:"renewed"`        // by this process
}

// ListenerStatus is one listening address.
type ListenerStatus struct {
	Address     string `json:"address"`
	Active      int    `json:"active"`
	Accepted    uint64 `json:"accepted"`
	Rejected    uint64 `json:"rejected"`
	Closed      bool   `json:"closed,omitempty"`      // a reload has removed it; its connections are not over yet
	AcceptProxy bool   `json:"acceptProxy,omitempty"` // connections of proxies begin with a PROXY header here
	Away        string `json:"away,omitempty"`        // why no client reaches it: with Freebind, no interface has its family
}

// BackendStatus is one backend.
type BackendStatus struct {
	Address   string    `json:"address"`          // ADDRESS:PORT; of a name without an address the name
	Name      string    `json:"name,omitempty"`   // the configured name that Address comes from
	State     string    `json:"state"`            // unknown, ready, slow_start, held, not_ready, dead, draining, unresolved
	Use       string    `json:"use,omitempty"`    // "backup" or "last resort" of a backend that is used when no better one is ready
	Weight    *int      `json:"weight,omitempty"` // its share of connections, if that is not 1
	Since     time.Time `json:"since"`
	Reason    string    `json:"reason,omitempty"`    // reason of the last change: "bad_cert: x509: …"
	LastCheck string    `json:"lastCheck,omitempty"` // ok, not_ready, connect_error, tls_error, timeout, bad_status, bad_cert
	Active    int       `json:"active"`
	Total     uint64    `json:"total"`
	Errors    uint64    `json:"connectErrors"`
	Source    string    `json:"source"`        // "static" or "discovered"
	Received  uint64    `json:"receivedBytes"` // from clients
	Sent      uint64    `json:"sentBytes"`     // to clients
}

// NameStatus is a configured name, which stands for all its addresses.
type NameStatus struct {
	Name      string    `json:"name"`
	Addresses int       `json:"addresses"`         // in use
	Problem   string    `json:"problem,omitempty"` // what is wrong with the last look-up, one line
	Since     time.Time `json:"since"`             // when Problem appeared or vanished
}

// The states of a backend besides those of package check.
const (
	stateUnresolved = "unresolved" // a name that has no address
	stateSlowStart  = "slow_start"
	stateHeld       = "held"     // its checks pass again, and it is held down because it has fallen repeatedly
	stateDraining   = "draining" // removed from the configuration; its connections may last for the drain time
)

// Status returns the current state. It may be called at any time.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	cfg := s.cfg.Load()
	st := Status{
		Ready: s.state == "", Reason: s.state, Serves: s.serving.serves, FailOpen: s.failsOpen(),
		Connections: int(s.active.Load()), Held: int(s.heldNow.Load()),
		Verified: cfg.Check == CheckHTTPS && s.files.roots != nil, Check: cfg.Check,
	}
	if cfg.Check == CheckHTTPS {
		st.Check += " " + cfg.CheckPath
	}
	for _, l := range s.accountsInUse() {
		ls := ListenerStatus{Address: l.address, Active: int(l.active.Load()), Accepted: l.accepted.Load(), Closed: !s.listensOn(l)}
		ls.AcceptProxy = len(cfg.AcceptProxyFrom) > 0 && slices.Contains(s.settings().proxied, l.address)
		if cfg.Freebind {
			ls.Away = away(l.address, interfaceAddresses())
		}
		for i := range l.rejected {
			ls.Rejected += l.rejected[i].Load()
		}
		st.Listen = append(st.Listen, ls)
	}
	inUse := s.pool.Load().backends
	gone := slices.DeleteFunc(slices.Clone(s.backends), func(b *Backend) bool { return slices.Contains(inUse, b) })
	for _, b := range slices.Concat(inUse, gone) {
		r := b.report(s.draining[b] != nil)
		for i := range *b.traffic.Load() {
			received, sent := b.bytesMoved(i)
			r.Received += received
			r.Sent += sent
		}
		st.Backends = append(st.Backends, r)
	}
	st.Limits = s.limitsReached()
	for _, f := range s.followed() {
		n := f.Status()
		st.Names = append(st.Names, NameStatus{Name: f.place, Addresses: len(n.Servers), Problem: n.Problem, Since: n.Since})
		if len(n.Servers) == 0 {
			st.Backends = append(st.Backends, unresolved(f.place, n))
		}
	}
	return st
}

// unresolved is the row of a name without an address.
func unresolved(place string, n names.Status) BackendStatus {
	b := BackendStatus{Address: place, State: string(check.Unknown), Since: n.Since, Reason: "not looked up yet", Source: sourceStatic}
	if n.Answered {
		b.State, b.Reason = stateUnresolved, n.Problem
	}
	return b
}

const (
	sourceStatic     = "static"
	sourceDiscovered = "discovered"
)

func (b *Backend) report(draining bool) BackendStatus {
	r := BackendStatus{
		Address: b.name, Name: b.is.name, State: b.state(draining), Use: classNames[b.is.class],
		Active: int(b.active.Load()), Total: b.total.Load(), Source: sourceStatic,
	}
	if b.is.discovered {
		r.Source = sourceDiscovered
	}
	if w := b.is.weight; w != normalWeight {
		r.Weight = &w
	}
	for i := range b.failures {
		r.Errors += b.failures[i].Load()
	}
	if st := b.checker.Load().Status(); st.State != check.Unknown || st.Last != "" {
		r.Since, r.LastCheck, r.Reason = st.Since, string(st.Last), reasonOf(st)
		if b.delivers.Load() {
			r.Reason += "; " + b.sign()
		}
	}
	return r
}

// reasonOf returns what is the matter now. The reason of the last change of state may be
// over while the state lasts: a backend that refused at first may be cut off by now.
func reasonOf(st check.Status) string {
	switch {
	case st.State != check.Ready && st.LastReason != "":
		return st.LastReason
	case st.State == check.Ready && st.Suspect:
		return st.SuspectReason
	}
	return st.Reason
}

// state returns the state shown in status and metrics.
func (b *Backend) state(draining bool) string {
	st := b.status.Load()
	switch {
	case draining:
		return stateDraining
	case st == nil:
		return string(check.Unknown)
	case st.State == check.Ready && b.share(b.s.clock()) < 1:
		return stateSlowStart
	case st.State != check.Ready && b.checker.Load().Status().Held:
		return stateHeld
	}
	return string(st.State)
}
