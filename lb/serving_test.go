package lb

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/lb/check"
	"kthwd/test/lbtest"
)

func TestServingIsDamped(t *testing.T) {
	at := time.Now()
	v := serving{serves: true}
	for i, step := range []struct {
		can  bool
		last time.Duration
		want bool
	}{
		{false, servingFall - time.Millisecond, true},
		{true, time.Millisecond, true}, // a moment is forgotten
		{false, servingFall - time.Millisecond, true},
		{false, 2 * time.Millisecond, false},
		{true, servingRise - time.Millisecond, false},
		{false, time.Millisecond, false},
		{true, servingRise - time.Millisecond, false},
		{true, 2 * time.Millisecond, true},
	} {
		v.see(step.can, at)
		at = at.Add(step.last)
		if v.see(step.can, at); v.serves != step.want {
			t.Errorf("step %d: got %v, want %v", i, v.serves, step.want)
		}
	}
}

// A balancer serves while any backend answers, ready or not.
func TestServes(t *testing.T) {
	a, b := newAPIServer(t), newAPIServer(t)
	r := run(t, checkedConfig(a, b), Options{})
	r.awaitTier(a, tierReady)
	serves := func(want bool) {
		t.Helper()
		eventually(t, "whether it serves", func() error { return equal("serves", r.Status().Serves, want) })
	}
	serves(true)
	a.kill()
	b.status.Store(500)
	r.awaitState(a, check.Dead)
	r.awaitState(b, check.NotReady)
	serves(true)
	b.kill()
	serves(false)
	a.start()
	serves(true)
}

// hushable is a server that accepts connections, or whose kernel answers no SYN.
type hushable struct {
	ln      *net.TCPListener
	resume  chan struct{}
	fillers []int
}

func newHushable(t *testing.T) *hushable {
	t.Helper()
	watchLeaks(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	h := &hushable{ln: ln.(*net.TCPListener), resume: make(chan struct{})}
	raw, err := h.ln.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }))
	must(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := h.ln.Accept()
			switch {
			case err == nil:
				c.Close()
			case errors.Is(err, os.ErrDeadlineExceeded):
				if _, more := <-h.resume; !more {
					return
				}
			default:
				return
			}
		}
	})
	t.Cleanup(func() { h.empty(); close(h.resume); ln.Close(); serving.Wait() })
	return h
}

func (h *hushable) address() string { return h.ln.Addr().String() }

// hush fills its queue.
func (h *hushable) hush(t *testing.T) {
	t.Helper()
	must(t, h.ln.SetDeadline(time.Unix(1, 0)))
	a := netip.MustParseAddrPort(h.address())
	for range 4 { // more than its queue holds
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		must(t, err)
		h.fillers = append(h.fillers, c)
		if err := unix.Connect(c, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}); err != nil && err != unix.EINPROGRESS {
			t.Fatal(err)
		}
	}
}

func (h *hushable) empty() {
	for _, c := range h.fillers {
		unix.Close(c)
	}
	h.fillers = nil
}

func (h *hushable) speak(t *testing.T) {
	t.Helper()
	h.empty()
	must(t, h.ln.SetDeadline(time.Time{}))
	h.resume <- struct{}{}
}

// When the kernels of all backends are silent, none can be reached, and that counts long
// before a check has had its time. The silence of one does not.
func TestAllSilent(t *testing.T) {
	a, b := newHushable(t), newHushable(t)
	cfg := testConfig(a.address(), b.address())
	cfg.Check, cfg.CheckTimeout = CheckTCP, time.Hour
	r := run(t, cfg, Options{})
	for _, h := range []*hushable{a, b} {
		eventually(t, "it is ready", func() error { return equal("tier", r.backend(h.address()).tier.Load(), tierReady) })
	}
	unheard := func(h *hushable) time.Duration { return r.backend(h.address()).checker.Load().Unheard(time.Now()) }
	silent := func(h *hushable) {
		t.Helper()
		eventually(t, "it is silent", func() error {
			if d := unheard(h); d < 2*deadSilence {
				return fmt.Errorf("for %v", d)
			}
			return nil
		})
	}
	a.hush(t)
	silent(a)
	if !r.Status().Serves {
		t.Error("it does not serve, though one backend answers")
	}
	b.hush(t)
	eventually(t, "it does not serve", func() error { return equal("serves", r.Status().Serves, false) })
	for _, st := range r.Status().Backends {
		if st.State != string(check.Ready) || st.LastCheck != string(check.KindOK) {
			t.Errorf("a check had its end: %+v", st)
		}
	}
	silent(b)
	if h := (&hush{woke: time.Now().Add(-time.Minute)}); h.all(r.Server, time.Now()) {
		t.Error("a process that did not run has heard silence")
	}
	if h := (&hush{woke: time.Now()}); !h.all(r.Server, time.Now()) {
		t.Error("all are silent, and that is not found")
	}
	a.speak(t)
	eventually(t, "it serves", func() error { return equal("serves", r.Status().Serves, true) })
}

// With Freebind a balancer listens on an address that comes later.
func TestFreebind(t *testing.T) {
	for _, address := range []string{"192.0.2.77:0", "[2001:db8::77]:0"} {
		if _, err := openListener(address, false, false); err == nil {
			t.Skipf("this machine takes any address as its own, such as %s", address)
		}
		if netip.MustParseAddrPort(address).Addr().Is6() && !isLocal(netip.IPv6Loopback()) {
			continue // no IPv6 here
		}
		ln, err := openListener(address, true, false)
		must(t, err)
		if host, _, _ := net.SplitHostPort(ln.Addr().String()); host != netip.MustParseAddrPort(address).Addr().String() {
			t.Errorf("it listens on %s", ln.Addr())
		}
		must(t, ln.Close())
	}
}

// An address whose family no interface has never comes, which status says.
func TestFreebindOfMissingFamily(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network of its own")
	}
	if !lbtest.OwnMachine(t) {
		return
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v\n%s", err, out)
	}
	cfg := testConfig("192.0.2.1:6443")
	cfg.Listen, cfg.Freebind = []string{"127.0.0.1:6443", "192.0.2.50:6443", "[2001:db8::50]:6443"}, true
	r := run(t, cfg, Options{})
	for i, want := range []string{"", "address not here: no interface has IPv4", "address not here: no interface has IPv6"} {
		l := r.Status().Listen[i]
		must(t, equal(l.Address, l.Away, want))
	}
	if out, err := exec.Command("ip", "address", "add", "192.0.2.9/24", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v\n%s", err, out)
	}
	must(t, equal("with another address of the family", r.Status().Listen[1].Away, ""))
}
