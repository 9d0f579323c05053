package check

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"kthwd/test/lbtest"
)

// Attempts take the sources of the backend's family by turns.
func TestSourcesByTurns(t *testing.T) {
	a, b, six := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")
	p := &prober{cfg: Config{Sources: []netip.Addr{a, six, b}}}
	for turn, want := range [][]netip.Addr{{a, b}, {b, a}, {a, b}} {
		p.turn = turn
		if got := p.sources(netip.MustParseAddrPort("10.9.9.9:6443")); !slices.Equal(got, want) {
			t.Errorf("turn %d: got %v, want %v", turn, got, want)
		}
	}
	if got := p.sources(netip.MustParseAddrPort("[fd00::9]:6443")); !slices.Equal(got, []netip.Addr{six}) {
		t.Errorf("IPv6: got %v", got)
	}
}

// A source has as many ports towards each backend as the machine has. One that has none left
// is passed over, and when none has one, that is no fault of the backend.
func TestPortsOfSources(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network of its own")
	}
	if !lbtest.OwnMachine(t) {
		return
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v\n%s", err, out)
	}
	const ports = 8
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40007"), 0); err != nil {
		t.Fatal(err)
	}
	full, spare := netip.MustParseAddr("127.0.0.21"), netip.MustParseAddr("127.0.0.22")
	at := func(port string) netip.AddrPort { // listens outside of the range
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return netip.MustParseAddrPort(l.Addr().String())
	}
	fill := func(to netip.AddrPort) {
		for n := 0; ; n++ {
			c, err := dialFrom(t.Context(), []netip.Addr{full}, to)
			if errors.Is(err, syscall.EADDRNOTAVAIL) && n > 0 {
				return
			}
			if err != nil || n == ports {
				t.Fatalf("after %d connections: %v", n, err)
			}
			t.Cleanup(func() { c.Close() })
		}
	}
	checkFrom := func(to netip.AddrPort, sources ...netip.Addr) Result {
		p := &prober{cfg: Config{Mode: TCP, Timeout: 10 * time.Second, Sources: sources}, addr: fixed(to)}
		return p.probe(t.Context())
	}
	other, backend := at("6444"), at("6443")
	fill(other)
	if r := checkFrom(backend, full); r.Kind != KindOK {
		t.Errorf("with all ports in use towards another backend: got %+v", r)
	}
	fill(backend)
	for range 2 {
		if r := checkFrom(backend, full, spare); r.Kind != KindOK {
			t.Errorf("with a second source: got %+v", r)
		}
	}
	gone := netip.MustParseAddr("192.0.2.1")
	if r := checkFrom(backend, gone, spare); r.Kind != KindOK {
		t.Errorf("with a second source beside one that is gone: got %+v", r)
	}
	if r := checkFrom(backend, gone); r.NoVerdict == "" || r.Shortage != NoSource {
		t.Errorf("with a source that is gone: got %+v", r)
	}
	if r := checkFrom(backend, full); r.NoVerdict == "" || r.Shortage != syscall.EADDRNOTAVAIL {
		t.Errorf("with no port left: got %+v", r)
	}
}
