package lb

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"kthwd/lb/check"
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
