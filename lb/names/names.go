// Package names follows the addresses of a name: all its A and AAAA records, or those of
// the servers in its SRV records.
//
//	n := names.New(names.Config{Host: "api.example.com", Port: 6443, …})
//	go n.Run(ctx)
//	…
//	n.Status().Servers
//
// Records are looked up at an interval of its own, not at their TTL: a server that is
// gone is more urgent than any TTL. What is known changes only with an answer. A look-up
// that fails, or that answers nothing where there was something, changes nothing, of one
// family as little as of both: a fault of DNS is more likely than the end of all servers.
// A family whose answer is late does not hold up the other one (RFC 8305 §3).
//
// Call New, then Run once; the other methods may be called at any time. The package
// connects to no server.
package names

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Most is how many addresses of one name are used. Each costs a check per second.
const Most = 64

// maxWeight is the largest weight of a Server.
const maxWeight = 256

// Config configures a Name. Host, Slow and Fast must be set.
type Config struct {
	Host string // a host name, or a name with SRV records such as _https._tcp.example.com
	Port uint16 // port of each address; 0 means that Host has SRV records, which have ports

	Slow    time.Duration // from one look-up to the next
	Fast    time.Duration // the same while Settled returns false or the last look-up failed
	Limit   time.Duration // of one question; 0 means what /etc/resolv.conf says
	Settled func() bool   // whether nothing is wrong with the servers; nil means true

	// Refuse returns the reason an address is not to be used, or nil. May be nil.
	Refuse func(netip.AddrPort) error
	// Changed is called from Run's goroutine after the first look-up, and after each
	// that changed Servers. May be nil.
	Changed  func()
	Resolver *net.Resolver // nil means net.DefaultResolver
	Log      *slog.Logger  // nil logs nothing
}

// Server is one address of a name.
type Server struct {
	Address netip.AddrPort
	Weight  int  // from SRV records, 1 to 256; else 0
	Backup  bool // another SRV record has a lower priority number
}

// Status is what is known of a name.
type Status struct {
	Answered bool     // a look-up has ended
	Servers  []Server // in the order of Happy Eyeballs (RFC 8305 §4): the families by turns, IPv6 first
	Problem  string   // what is wrong with the last look-up, in one line; "" when nothing is
	Since    time.Time
}

// Name is a name that is followed. Create it with New.
type Name struct {
	c    Config
	kick chan struct{}

	late chan struct{} // signals that a question has ended; holds one

	// Used by Run's goroutine only. The maps are by family and host.
	last   map[string][]netip.Addr
	failed map[string]error       // why the last question that has ended had no answer
	asked  map[string]chan answer // questions whose answers are not read yet
	asking sync.WaitGroup
	limit  time.Duration // of one question
	urgent bool          // the last look-up calls for another one soon

	mu sync.Mutex
	s  Status
}

// New creates a Name; it does nothing before Run.
func New(c Config) *Name {
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Settled == nil {
		c.Settled = func() bool { return true }
	}
	if c.Refuse == nil {
		c.Refuse = func(netip.AddrPort) error { return nil }
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	return &Name{c: c, kick: make(chan struct{}, 1), late: make(chan struct{}, 1), last: map[string][]netip.Addr{}, failed: map[string]error{}, asked: map[string]chan answer{}, s: Status{Since: time.Now()}}
}

// Status returns what is known.
func (n *Name) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.s
	s.Servers = slices.Clone(s.Servers)
	return s
}

// Has reports whether a is one of the addresses.
func (n *Name) Has(a netip.AddrPort) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return has(n.s.Servers, a)
}

func has(all []Server, a netip.AddrPort) bool {
	return slices.ContainsFunc(all, func(s Server) bool { return s.Address == a })
}

// Hurry makes the next look-up come no later than Config.Fast after the last one. It
// never blocks.
func (n *Name) Hurry() { signal(n.kick) }

func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// Run looks the name up again and again until ctx ends. It blocks.
func (n *Name) Run(ctx context.Context) {
	defer n.asking.Wait()
	for ctx.Err() == nil {
		began := time.Now()
		n.once(ctx)
		n.wait(ctx, began)
	}
}

func (n *Name) wait(ctx context.Context, began time.Time) {
	pause := n.c.Slow
	if n.troubled() {
		pause = n.c.Fast
	}
	t := time.NewTimer(jitter(pause) - time.Since(began))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			return
		case <-n.kick:
			if n.troubled() { // else the trouble is over already
				t.Reset(n.c.Fast - time.Since(began))
			}
		case <-n.late:
			if n.readLate() { // the next look-up finds what is known of both families
				t.Reset(n.c.Fast - time.Since(began))
			}
		}
	}
}

func (n *Name) troubled() bool { return n.urgent || !n.c.Settled() }

// jitter keeps the look-ups of several names and machines from falling into step.
func jitter(d time.Duration) time.Duration { return d - time.Duration(rand.Float64()*0.1*float64(d)) }

// once looks the name up and publishes the result.
func (n *Name) once(ctx context.Context) {
	n.limit, n.urgent = cmp.Or(n.c.Limit, limitOf(resolvConf)), false
	n.readLate()
	found, err := n.find(ctx)
	if ctx.Err() != nil {
		return
	}
	servers, notes := n.choose(found)
	n.urgent = n.urgent || len(notes) > 0
	if err != nil {
		notes = slices.Insert(notes, 0, text(err))
	}
	n.publish(servers, strings.Join(notes, "; "))
}

// find returns every server that the records name, with the last known ones in place of
// those whose look-up failed.
func (n *Name) find(ctx context.Context) ([]Server, error) {
	if n.c.Port == 0 {
		return n.findServices(ctx)
	}
	addresses, err := n.addresses(ctx, n.c.Host)
	var all []Server
	for _, a := range addresses {
		all = append(all, Server{Address: netip.AddrPortFrom(a, n.c.Port)})
	}
	return all, err
}

func (n *Name) findServices(ctx context.Context) ([]Server, error) {
	limited, cancel := context.WithTimeout(ctx, n.limit)
	defer cancel()
	_, records, err := n.c.Resolver.LookupSRV(limited, "", "", n.c.Host)
	records = slices.DeleteFunc(records, func(r *net.SRV) bool { return r.Target == "." || r.Port == 0 })
	if err == nil && len(records) == 0 {
		err = fmt.Errorf("%s has no SRV record with a server", n.c.Host)
	}
	n.urgent = n.urgent || err != nil
	if err != nil && len(records) == 0 {
		return n.Status().Servers, err
	}
	for _, r := range records { // all at once: each may take as long as the limit
		n.ask(ctx, target(r))
	}
	most, best := uint16(0), uint16(1<<16-1)
	for _, r := range records {
		most, best = max(most, r.Weight), min(best, r.Priority)
	}
	var all []Server
	var errs []error
	for _, r := range records {
		addresses, err := n.addresses(ctx, target(r))
		errs = append(errs, err)
		for _, a := range addresses {
			all = append(all, Server{netip.AddrPortFrom(a, r.Port), weight(r.Weight, most), r.Priority > best})
		}
	}
	return all, errors.Join(errs...)
}

func target(r *net.SRV) string { return strings.TrimSuffix(r.Target, ".") }

// weight brings the weights of SRV records, up to 65535, into the range of a backend's.
func weight(w, most uint16) int {
	if most <= maxWeight {
		return max(1, int(w))
	}
	return max(1, int(w)*maxWeight/int(most))
}

// choose leaves out what cannot be used, with a note for it.
func (n *Name) choose(found []Server) ([]Server, []string) {
	present := n.Status().Servers
	var usable []Server
	var notes []string
	for _, s := range found {
		switch err := n.c.Refuse(s.Address); {
		case has(usable, s.Address):
		case err != nil:
			notes = append(notes, fmt.Sprintf("%s is %s, %v", n.c.Host, s.Address, err))
		default:
			usable = append(usable, s)
		}
	}
	usable = withRoute(usable, present)
	slices.SortFunc(usable, func(a, b Server) int { return a.Address.Compare(b.Address) })
	if len(usable) > Most {
		notes = append(notes, fmt.Sprintf("%s has %d addresses, and the first %d are used", n.c.Host, len(usable), Most))
		slices.SortStableFunc(usable, func(a, b Server) int { // those in use first, so that the choice does not change
			return cmp.Compare(index(!has(present, a.Address)), index(!has(present, b.Address)))
		})
		usable = usable[:Most]
		slices.SortFunc(usable, func(a, b Server) int { return a.Address.Compare(b.Address) })
	}
	return byTurns(usable), notes
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// withRoute leaves out new addresses of a family that this machine does not have, as long
// as there are others. One in use stays: a route may be away for a moment.
func withRoute(all, present []Server) []Server {
	reached := slices.DeleteFunc(slices.Clone(all), func(s Server) bool { return !has(present, s.Address) && !routed(s.Address) })
	if len(reached) == 0 {
		return all
	}
	return reached
}

// routed reports whether this machine has a route to a. It sends nothing.
func routed(a netip.AddrPort) bool {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a))
	if err == nil {
		c.Close()
		return true
	}
	return !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EAFNOSUPPORT)
}

// byTurns orders the families by turns, IPv6 first.
func byTurns(all []Server) []Server {
	var six, four []Server
	for _, s := range all {
		if s.Address.Addr().Is4() {
			four = append(four, s)
		} else {
			six = append(six, s)
		}
	}
	mixed := make([]Server, 0, len(all))
	for i := range max(len(six), len(four)) {
		mixed = append(mixed, six[min(i, len(six)):min(i+1, len(six))]...)
		mixed = append(mixed, four[min(i, len(four)):min(i+1, len(four))]...)
	}
	return mixed
}

// publish puts a result in force. One line is logged for each change.
func (n *Name) publish(servers []Server, problem string) {
	n.mu.Lock()
	was := n.s
	changed := !was.Answered || !slices.Equal(was.Servers, servers)
	n.s.Answered, n.s.Servers, n.s.Problem = true, servers, problem
	if (problem == "") != (was.Problem == "") || !was.Answered {
		n.s.Since = time.Now()
	}
	n.mu.Unlock()
	switch {
	case problem != "" && problem != was.Problem && was.Problem == "":
		n.c.Log.Warn("backend's name has a problem: what was known of it stays", "name", n.c.Host, "problem", problem)
	case problem != was.Problem && problem == "":
		n.c.Log.Info("backend's name is well again", "name", n.c.Host)
	}
	if changed {
		if len(servers) > 0 {
			n.c.Log.Info("backend's name resolved", "name", n.c.Host, "addresses", joined(servers))
		}
		n.c.Changed()
	}
}

func joined(all []Server) string {
	var texts []string
	for _, s := range all {
		texts = append(texts, s.Address.String())
	}
	return strings.Join(texts, ",")
}

// text returns an error as one line.
func text(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
