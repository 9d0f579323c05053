package lb

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/test/harness"
	"kthwd/test/kthwtest"
	"kthwd/test/lbtest"
)

// couple is two balancers that share listenAddress by keepalived, with the configuration
// and the script of the packages, joined with backends and clients by a bridge on a
// machine of its own, the switch.
type couple struct {
	*rig
	members []*member
	adverts *adverts
}

// member is one machine of a couple.
type member struct {
	*lbtest.Namespace
	name   string
	ip     string
	port   string // of the switch
	setup  lbtest.Setup
	lb     *lbtest.Process
	keeper *lbtest.Process
}

// TestPair moves the address of two balancers with real VRRP: by a stop that was planned,
// and by every fault that keepalived is to notice. How long that took is logged; what
// decides is the number of advertisements.
func TestPair(t *testing.T) {
	sidesToRun(t)
	if lacks := lbtest.Kthwd.Missing(); lacks != "" {
		t.Skip(lacks)
	}
	for _, program := range []string{"keepalived", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("KTHWD_NO_SKIP") != "" {
				t.Fatalf("needs %s", program)
			}
			t.Skipf("needs %s", program)
		}
	}
	if !lbtest.OwnMachine(t) {
		return
	}
	s := &suite{}
	s.certificate, s.key, s.pool = makeCertificate(t, lbtest.PublicDir(t))
	c := s.newCouple(t)
	c.plannedMove(t)
	for _, f := range faults {
		c.loses(t, f)
	}
	c.noneServes(t)
}

// fault is one that makes the owner lose the address.
type fault struct {
	name        string
	begin, heal func(*testing.T, *couple, *member)
	unheard     bool // the owner keeps the address, but nobody hears it
	idle        bool // there are no clients, whose connections would show it
}

var faults = []fault{
	{name: "killed", begin: func(t *testing.T, _ *couple, m *member) {
		m.lb.Signal(t, syscall.SIGKILL)
		<-m.lb.Exited()
	}, heal: func(t *testing.T, c *couple, m *member) { c.startBalancer(t, m) }},
	{name: "all backends refuse it", begin: firewall("-I", "REJECT", "--reject-with", "tcp-reset"), heal: firewall("-D", "REJECT", "--reject-with", "tcp-reset")},
	{name: "cut off from all backends", begin: firewall("-I", "DROP"), heal: firewall("-D", "DROP")},
	{name: "cut off from all backends, without clients", idle: true, begin: firewall("-I", "DROP"), heal: firewall("-D", "DROP")},
	{name: "cut off from everything", unheard: true,
		begin: func(t *testing.T, c *couple, m *member) { c.lb.Run(t, "ip", "link", "set", m.port, "nomaster") },
		heal:  func(t *testing.T, c *couple, m *member) { c.lb.Run(t, "ip", "link", "set", m.port, "master", "br0") }},
}

func (s *suite) newCouple(t *testing.T) *couple {
	t.Helper()
	c := &couple{rig: &rig{suite: s, row: &row{name: "pair"}, side: lbtest.Kthwd}}
	c.setup.Listen = listenAddress // for the clients
	c.lb = lbtest.NewNamespace(t)
	c.lb.Run(t, "ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
	c.lb.Run(t, "ip", "link", "set", "br0", "up")
	c.adverts = watchAdverts(t, c.lb)
	for i := range backendCount {
		c.hosts = append(c.hosts, c.host(t, backendIP(i), i))
		c.backends = append(c.backends, nil)
		c.startBackend(t, i)
	}
	c.clients = c.host(t, clientAddress, 10)
	config, dir := keeperFiles(t)
	for i, name := range []string{"left", "right"} {
		m := &member{name: name, ip: fmt.Sprintf("10.42.0.%d", 48+i), port: fmt.Sprintf("v%d", 20+i)}
		m.Namespace = c.host(t, m.ip, 20+i)
		m.setup = lbtest.Setup{
			Dir: t.TempDir(), Namespace: m.Namespace, Listen: listenAddress, HTTPS: true, CA: s.certificate,
			Args: []string{"--freebind", "--metrics-address=127.0.0.1:10300", "--shutdown-delay=5m"},
		}
		for i := range c.hosts {
			m.setup.Backends = append(m.setup.Backends, backendAddress(i))
		}
		c.members = append(c.members, m)
		c.startBalancer(t, m)
		file := func(kind string) string { return filepath.Join(dir, name+kind) }
		m.keeper = lbtest.Start(t, lbtest.Command{
			Name: "keepalived " + name, Namespace: m.Namespace, Stop: syscall.SIGTERM,
			Argv: []string{"keepalived", "--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file=" + config, "--pid=" + file(".pid"), "--vrrp_pid=" + file(".vrrp.pid")},
		})
	}
	return c
}

// keeperFiles puts the packages' files where keepalived trusts the script: only root can
// write any directory of its path. The configuration has this network's address.
func keeperFiles(t *testing.T) (config, dir string) {
	t.Helper()
	dir = "/run/kthwd-pair"
	if err := errors.Join(os.Chmod("/run", 0o755), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	shipped := filepath.Join(kthwtest.Root(), "packaging", "keepalived")
	script, err := os.ReadFile(filepath.Join(shipped, "lb-serves"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "lb-serves"), script, 0o755)
	}
	text, errConfig := os.ReadFile(filepath.Join(shipped, "keepalived.conf"))
	if err := errors.Join(err, errConfig); err != nil {
		t.Fatal(err)
	}
	changed := string(text)
	interval := fmt.Sprintf("    advert_int %v\n", advertInterval.Seconds())
	for from, to := range map[string]string{interval: interval, "    10.0.1.50/24\n": "    10.42.0.1/24\n", `"/usr/lib/kthwd/`: `"` + dir + "/"} {
		if !strings.Contains(changed, from) {
			t.Fatalf("keepalived.conf lacks %q", from)
		}
		changed = strings.ReplaceAll(changed, from, to)
	}
	return writeFile(t, dir, "keepalived.conf", changed), dir
}

func writeFile(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func (c *couple) startBalancer(t *testing.T, m *member) {
	t.Helper()
	m.lb = lbtest.Kthwd.Start(t, m.setup)
}

func (c *couple) otherThan(m *member) *member {
	if c.members[0] == m {
		return c.members[1]
	}
	return c.members[0]
}

// has reports whether the machine has the address.
func (m *member) has(t *testing.T) bool {
	t.Helper()
	var out []byte
	var err error
	m.Do(func() { out, err = exec.Command("ip", "-4", "-o", "address", "show", "dev", "eth0").Output() })
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(out), " 10.42.0.1/")
}

// firewall changes the rule for connections to the backends.
func firewall(verb string, target ...string) func(*testing.T, *couple, *member) {
	return func(t *testing.T, _ *couple, m *member) {
		m.Run(t, append([]string{"iptables", "-w", verb, "OUTPUT", "-p", "tcp", "-d", "10.42.0.0/28", "--dport", "6443", "!", "-s", "10.42.0.1", "-j"}, target...)...)
	}
}

// awaitOwner waits until exactly one machine has the address, which is that one if it is
// given, both have full priority, and a client gets an answer.
func (c *couple) awaitOwner(t *testing.T, want *member) (owner *member) {
	t.Helper()
	harness.WaitFor(t, "the address has one owner", 3*time.Minute, func() error {
		owner = nil
		for _, m := range c.members {
			if !m.has(t) {
				continue
			}
			if owner != nil {
				return errors.New("both have the address")
			}
			owner = m
		}
		switch {
		case owner == nil:
			return errors.New("none has the address")
		case want != nil && owner != want:
			return fmt.Errorf("%s has the address", owner.name)
		}
		for _, m := range c.members {
			for _, check := range []string{"running", "backends"} {
				if err := m.check(check); err != nil {
					return fmt.Errorf("%s: lb-serves %s: %w", m.name, check, err)
				}
			}
		}
		_, err := c.request(t.Context(), c.clients, patience)
		return err
	})
	return owner
}

// check runs the script.
func (m *member) check(which string) (err error) {
	m.Do(func() { err = exec.Command("/run/kthwd-pair/lb-serves", which).Run() })
	return err
}

// plannedMove repeats the planned move until no machine was silent meanwhile, which moves the
// address as well, and until it was as fast as is promised.
func (c *couple) plannedMove(t *testing.T) {
	t.Helper()
	slow := 0
	for slow < tries {
		from := c.awaitOwner(t, nil)
		switch heard, ok := c.planned(t, from, c.otherThan(from)); {
		case !ok:
			t.Log("planned move: the address moved again by a machine's silence; again")
		case heard <= promised:
			return
		default:
			slow++
		}
	}
	t.Errorf("planned move: never within %d advertisements, %v, in %d tries", promised, time.Duration(promised)*advertInterval, tries)
}

// planned stops the balancer that has the address. Its address moves before it closes
// anything, clients are served until then and afterwards, and no request fails but one
// whose client waits for an answer while the address moves: the answer has no way any
// more, and a client that sends nothing gets no reset. It returns how many advertisements of
// the owner were heard until the other one's first, and false if a machine was silent meanwhile.
func (c *couple) planned(t *testing.T, from, to *member) (heard int, ok bool) {
	t.Helper()
	l := c.gets(t)
	l.await(t, 20)
	begun := time.Now()
	from.lb.Signal(t, syscall.SIGTERM)
	c.awaitAddress(t, from, to)
	moved := time.Now()
	first := c.adverts.firstOf(t, to, begun)
	l.await(t, 20)
	if !from.lb.Running() {
		t.Errorf("%s has ended before its address had moved", from.name)
	} else {
		from.lb.Signal(t, syscall.SIGTERM) // the second one ends it at once
	}
	<-from.lb.Exited()
	l.await(t, 20)
	l.stop()
	if c.adverts.silent(from, begun) || c.adverts.silent(to, begun) {
		c.startBalancer(t, from)
		return 0, false
	}
	heard = c.adverts.between(from, begun, first)
	t.Logf("planned move: the address moved after %v, %d advertisements; %d requests failed of %d, %d were sent twice", moved.Sub(begun).Round(time.Millisecond), heard, len(l.failed), len(l.answered)+len(l.failed), l.again)
	for _, f := range l.failed {
		if waited := (errors.Is(f.err, os.ErrDeadlineExceeded) || errors.Is(f.err, context.DeadlineExceeded)) && f.begun.Before(moved) && f.ended.After(first); !waited {
			t.Errorf("planned move: a request failed %v after the stop and %v after the move: %v", f.begun.Sub(begun), f.begun.Sub(moved), f.err)
		}
	}
	if len(l.failed) > clients {
		t.Errorf("planned move: %d requests failed, but no more than %d were sent at once", len(l.failed), clients)
	}
	if !slices.ContainsFunc(l.answered, func(r sent) bool { return r.at.After(begun) && r.at.Add(r.took).Before(first) }) {
		t.Errorf("planned move: no request was answered between the stop and the move")
	}
	c.startBalancer(t, from)
	c.stays(t, "planned move", to, first)
	return heard, true
}

// stays requires that a machine keeps the address. It may lose it only by silence, as
// after a stall of the whole test machine, and then gets it back.
func (c *couple) stays(t *testing.T, fault string, want *member, since time.Time) {
	t.Helper()
	owner := c.awaitOwner(t, nil)
	if owner == want {
		return
	}
	if !c.adverts.silent(want, since) {
		t.Errorf("%s: %s took the address back", fault, owner.name)
	}
	c.hand(t, owner, want)
}

// promised is how many advertisements may pass until the other machine advertises: 3 s. In
// theory 8 do at most: 4 for three questions without an answer and the one before them, and 4
// that the other machine takes over after.
const promised = int(3 * time.Second / advertInterval)

// A machine that has no processor for a while does all of it later, the checks more than the
// advertisements. So one of some tries must keep the promise, and none may pass the most.
const (
	tries       = 3
	mostAdverts = 30
)

// loses makes the owner lose the address by a fault, until it is as fast as is promised.
func (c *couple) loses(t *testing.T, f fault) {
	t.Helper()
	for range tries {
		from := c.awaitOwner(t, nil)
		if c.lost(t, f, from, c.otherThan(from)) <= promised {
			return
		}
	}
	t.Errorf("%s: never within %d advertisements, %v, in %d tries", f.name, promised, time.Duration(promised)*advertInterval, tries)
}

// lost makes the owner lose the address by a fault, heals it, and requires that the address
// stays where it went. It returns how many advertisements passed.
func (c *couple) lost(t *testing.T, f fault, from, to *member) (heard int) {
	t.Helper()
	answers := func() {}
	if !f.idle {
		l := c.gets(t)
		l.await(t, 20)
		answers = func() {
			l.await(t, 20)
			l.stop()
			t.Logf("%s: %d requests failed of %d", f.name, len(l.failed), len(l.answered)+len(l.failed))
		}
	}
	interval := c.adverts.interval(from)
	begun := time.Now()
	f.begin(t, c, from)
	if f.unheard {
		harness.WaitFor(t, to.name+" has the address", 3*time.Minute, func() error {
			if !to.has(t) {
				return errors.New("it has not")
			}
			return nil
		})
	} else {
		c.awaitAddress(t, from, to)
	}
	first := c.adverts.firstOf(t, to, begun)
	heard = c.adverts.between(from, begun, first)
	took := first.Sub(begun)
	if f.unheard {
		heard = int(took/interval) + 1
	}
	if heard > mostAdverts {
		t.Errorf("%s: %d advertisements passed until %s took over, at most %d should", f.name, heard, to.name, mostAdverts)
	}
	answers()
	t.Logf("%s: %s took over after %v, %d advertisements", f.name, to.name, took.Round(time.Millisecond), heard)
	f.heal(t, c, from)
	if !f.unheard {
		c.stays(t, f.name, to, first)
	} else if owner := c.awaitOwner(t, nil); owner != to { // both had it, and the higher address keeps it
		c.hand(t, owner, to)
	}
	return heard
}

// hand moves the address, as a person would.
func (c *couple) hand(t *testing.T, from, to *member) {
	t.Helper()
	for owner := from; owner != to; owner = c.awaitOwner(t, nil) {
		from.lb.Signal(t, syscall.SIGKILL)
		<-from.lb.Exited()
		c.awaitAddress(t, from, to)
		c.startBalancer(t, from)
	}
}

func (c *couple) awaitAddress(t *testing.T, from, to *member) {
	t.Helper()
	harness.WaitFor(t, "the address moves to "+to.name, 3*time.Minute, func() error {
		if from.has(t) || !to.has(t) {
			return errors.New("it has not moved")
		}
		return nil
	})
}

// noneServes kills all backends. The address may move once, to the machine that notices
// later, and then stays, because the other is no better; clients are served when the
// backends are back.
func (c *couple) noneServes(t *testing.T) {
	t.Helper()
	for i := range c.backends {
		c.kill(t, i)
	}
	for !c.staysWithoutBackends(t) {
		t.Log("no backend for both: the address moved by the owner's silence; again")
	}
	for i := range c.backends {
		c.startBackend(t, i)
	}
	owner := c.awaitOwner(t, nil)
	t.Logf("no backend for both: the address stayed, and %s serves when they are back", owner.name)
}

// staysWithoutBackends reports whether the owner keeps the address. It returns false if
// the owner was silent, as after a stall of the whole test machine.
func (c *couple) staysWithoutBackends(t *testing.T) bool {
	t.Helper()
	var owner *member
	harness.WaitFor(t, "one machine has the address, and both say that no backend serves", 3*time.Minute, func() error {
		owner = nil
		for _, m := range c.members {
			if m.check("backends") == nil {
				return fmt.Errorf("%s serves", m.name)
			}
			if m.has(t) {
				owner = m
			}
		}
		if owner == nil || c.otherThan(owner).has(t) {
			return errors.New("the address has not one owner")
		}
		if p := c.adverts.last(owner).priority; p != 150 {
			return fmt.Errorf("%s advertises priority %d", owner.name, p)
		}
		if time.Since(c.adverts.last(c.otherThan(owner)).at) < 20*c.adverts.interval(owner) {
			return errors.New("the other one has just advertised")
		}
		return nil
	})
	other := c.otherThan(owner)
	since := c.adverts.last(owner).at
	seen, others := c.adverts.count(owner), c.adverts.count(other)
	harness.WaitFor(t, "further advertisements", 3*time.Minute, func() error {
		if c.adverts.count(owner) < seen+20 && c.adverts.count(other) == others {
			return errors.New("not yet")
		}
		return nil
	})
	if owner.has(t) && !other.has(t) && c.adverts.count(other) == others {
		return true
	}
	if !c.adverts.silent(owner, since) {
		t.Error("the address moved, though the other machine serves no better")
		return true
	}
	return false
}

// clients is how many requests of gets are under way at once.
const clients = 4

// gets is a client that sends one GET after the other and, as client-go does, sends one
// again whose connection was reset.
type gets struct {
	mu       sync.Mutex
	again    int
	answered []sent
	failed   []failure
	ok       int // in a row
	ending   context.CancelFunc
	all      sync.WaitGroup
}

type failure struct {
	begun, ended time.Time
	err          error
}

func (c *couple) gets(t *testing.T) *gets {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	g := &gets{ending: cancel}
	for range clients {
		g.all.Go(func() {
			for ctx.Err() == nil {
				begun := time.Now()
				_, err := c.request(context.Background(), c.clients, patience)
				again := errors.Is(err, syscall.ECONNRESET)
				if again {
					begun = time.Now()
					_, err = c.request(context.Background(), c.clients, patience)
				}
				g.note(begun, err, again)
				select {
				case <-ctx.Done():
				case <-time.After(25 * time.Millisecond):
				}
			}
		})
	}
	t.Cleanup(g.stop)
	return g
}

func (g *gets) note(begun time.Time, err error, again bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if again {
		g.again++
	}
	if err != nil {
		g.failed, g.ok = append(g.failed, failure{begun: begun, ended: time.Now(), err: err}), 0
		return
	}
	g.answered = append(g.answered, sent{at: begun, took: time.Since(begun)})
	g.ok++
}

// await waits for n more answers in a row.
func (g *gets) await(t *testing.T, n int) {
	t.Helper()
	g.mu.Lock()
	g.ok = 0
	g.mu.Unlock()
	harness.WaitFor(t, "clients are answered", 3*time.Minute, func() error {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.ok < n {
			var last failure
			if n := len(g.failed); n > 0 {
				last = g.failed[n-1]
			}
			return fmt.Errorf("%d answers in a row; %d requests failed, the last one: %v", g.ok, len(g.failed), last.err)
		}
		return nil
	})
}

func (g *gets) stop() {
	g.ending()
	g.all.Wait()
}

// adverts are the VRRP advertisements that the switch has seen.
type adverts struct {
	mu  sync.Mutex
	all []advert
}

type advert struct {
	at       time.Time
	from     string
	priority int
}

func watchAdverts(t *testing.T, n *lbtest.Namespace) *adverts {
	t.Helper()
	const all = 0x0300 // ETH_P_ALL in network order
	fd := -1
	var err error
	n.Do(func() {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all); err == nil {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
		}
	})
	if err != nil {
		t.Fatalf("packet socket: %v", err)
	}
	a := &adverts{}
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 2048)
		for t.Context().Err() == nil {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			link, ok := from.(*unix.SockaddrLinklayer)
			if err == nil && ok && link.Pkttype != unix.PACKET_OUTGOING {
				a.note(buf[:n])
			}
		}
	})
	t.Cleanup(func() {
		reading.Wait()
		unix.Close(fd)
	})
	return a
}

// note records an IPv4 packet that is an advertisement of VRRP version 3. The bridge and
// its port both see it; one counts.
func (a *adverts) note(packet []byte) {
	const vrrp = 112
	if len(packet) < 20 || packet[0]>>4 != 4 || packet[9] != vrrp {
		return
	}
	body := packet[int(packet[0]&15)*4:]
	if len(body) < 8 || body[0] != 0x31 {
		return
	}
	from := netip.AddrFrom4([4]byte(packet[12:16])).String()
	a.mu.Lock()
	defer a.mu.Unlock()
	if last, ok := a.lastOf(from); ok && time.Since(last.at) < 20*time.Millisecond {
		return
	}
	a.all = append(a.all, advert{at: time.Now(), from: from, priority: int(body[2])})
}

func (a *adverts) lastOf(ip string) (advert, bool) {
	for _, x := range slices.Backward(a.all) {
		if x.from == ip {
			return x, true
		}
	}
	return advert{}, false
}

func (a *adverts) last(m *member) advert {
	a.mu.Lock()
	defer a.mu.Unlock()
	x, _ := a.lastOf(m.ip)
	return x
}

func (a *adverts) count(m *member) int { return a.between(m, time.Time{}, time.Now()) }

func (a *adverts) between(m *member, from, to time.Time) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range a.all {
		if x.from == m.ip && !x.at.Before(from) && x.at.Before(to) {
			n++
		}
	}
	return n
}

// advertInterval is advert_int of keepalived.conf.
const advertInterval = 250 * time.Millisecond

// silent reports whether a machine lost the address because it had not advertised for as
// long as the other one waits: three intervals and some.
func (a *adverts) silent(m *member, since time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	own, last := true, since
	for _, x := range a.all {
		if x.at.Before(since) {
			continue
		}
		if own && x.at.Sub(last) > 3*advertInterval {
			return true
		}
		own, last = x.from == m.ip, x.at
	}
	return false
}

// firstOf returns the time of the first advertisement after a moment.
func (a *adverts) firstOf(t *testing.T, m *member, after time.Time) (at time.Time) {
	t.Helper()
	harness.WaitFor(t, m.name+" advertises", 3*time.Minute, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, x := range a.all {
			if x.from == m.ip && x.at.After(after) {
				at = x.at
				return nil
			}
		}
		return errors.New("no advertisement")
	})
	return at
}

// interval is the median time between advertisements.
func (a *adverts) interval(m *member) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []time.Duration
	var last time.Time
	for _, x := range a.all {
		if x.from != m.ip {
			continue
		}
		if !last.IsZero() {
			all = append(all, x.at.Sub(last))
		}
		last = x.at
	}
	if len(all) == 0 {
		return time.Second
	}
	slices.Sort(all)
	return all[len(all)/2]
}
