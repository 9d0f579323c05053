package lb

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/lb/check"
)

// reached waits until a limit is reached, and returns it.
func (r *rig) reached(name string) (found LimitStatus) {
	r.t.Helper()
	eventually(r.t, "the limit "+name, func() error {
		var all []string
		for _, l := range r.Status().Limits {
			if l.Name == name {
				found = l
				return nil
			}
			all = append(all, l.Name)
		}
		return fmt.Errorf("got %v", all)
	})
	if n := r.log.Count("WARN", "a limit is reached"); n != 1 {
		r.t.Errorf("%d lines in the log, want 1", n)
	}
	return found
}

// Each limit that clients can reach is said once, with its name and number, and the
// backends look as well as they are.
func TestLimitsAreSaid(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	must(t, err)
	full.Close()
	for name, tt := range map[string]struct {
		change func(*Config)
		value  string
	}{
		"max_connections":            {func(c *Config) { c.MaxConnections = 2 }, "2"},
		"max_connections_per_source": {func(c *Config) { c.MaxPerSource = 2 }, "2"},
		"access_log":                 {func(c *Config) { c.AccessLog = "/dev/full" }, "/dev/full"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeerAt(t, "127.0.0.1:0", func(c net.Conn) { io.Copy(io.Discard, c) })
			cfg := testConfig(p.addr)
			tt.change(&cfg)
			r := run(t, cfg, Options{})
			for i := range 7 {
				c := r.dial()
				must(t, write(c, "x"))
				if i < 2 && name == "access_log" {
					must(t, c.Close())
				}
			}
			l := r.reached(name)
			must(t, equal("value", l.Value, tt.value), equal("said what to do", l.Do != "", true))
			b := r.Status().Backends[0]
			must(t, equal("state", b.State, "ready"), equal("errors", b.Errors, 0), equal("fail open", r.Status().FailOpen, false))
		})
	}
}

func TestHeldLimitIsSaid(t *testing.T) {
	cfg := testConfig(unused(t))
	cfg.MaxHeld = 1
	r := run(t, cfg, Options{})
	for range 4 {
		must(t, write(r.dial(), "x"))
	}
	must(t, equal("value", r.reached("max_held").Value, "1"))
}

// What lasts is said every ten minutes, and its end once.
func TestLimitIsDamped(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	begun := time.Now()
	for i := range 25 {
		r.reach(limitPorts)
		r.sayLimits(begun.Add(time.Duration(i) * time.Minute))
	}
	must(t, equal("lines", r.log.Count("WARN", "a limit is reached"), 3), equal("hits", r.Status().Limits[0].Hits, 25))
	r.limits.all[limitPorts].last.Store(1)
	r.Server.begun = r.Server.begun.Add(-2 * time.Minute)
	r.sayLimits(begun.Add(26 * time.Minute))
	must(t, equal("lines about the end", r.log.Count("INFO", "a limit is no longer reached"), 1), equal("limits", len(r.Status().Limits), 0))
}

// A shortage of this machine is no error of a backend, whoever meets it.
func TestShortageIsNotTheBackends(t *testing.T) {
	a := newAPIServer(t)
	r := run(t, checkedConfig(a), Options{})
	r.awaitTier(a, tierReady)
	b := r.backend(a.addr)
	for _, errno := range []unix.Errno{unix.EMFILE, unix.EADDRNOTAVAIL, unix.ENOBUFS} {
		b.connectFailed(errno)
		b.checked(check.Result{Kind: check.KindConnectError, NoVerdict: errno.Error(), Shortage: errno})
	}
	st := r.Status().Backends[0]
	must(t, equal("errors", st.Errors, 0), equal("state", st.State, "ready"), equal("reason", st.Reason, "ok"), equal("tier", b.tier.Load(), tierReady))
	for _, k := range []limitKind{limitDescriptors, limitPorts, limitMemory} {
		must(t, equal(limitNames[k], r.limits.all[k].hits.Load(), 2))
	}
	nowhere := &Backend{s: r.Server, at: netip.MustParseAddrPort("[2001:db8::1]:6443")}
	nowhere.checker.Store(b.checker.Load())
	if !r.hasSource(nowhere.at) {
		nowhere.connectFailed(unix.EADDRNOTAVAIL) // no address of the family: not a lack of ports
		must(t, equal("ports", r.limits.all[limitPorts].hits.Load(), 2))
	}
}

// Connections and checks come from the sources, by turns, and one that has no port left is
// passed over.
func TestSources(t *testing.T) {
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.Sources = []string{"127.0.0.21", "127.0.0.22", "::1"}
	if !isLocal(netip.MustParseAddr("::1")) {
		cfg.Sources = cfg.Sources[:2]
	}
	r := run(t, cfg, Options{})
	seen := map[string]int{}
	for range 6 {
		_, server, _ := r.pairUp(p)
		host, _, _ := net.SplitHostPort(server.RemoteAddr().String())
		seen[host]++
	}
	if seen["127.0.0.21"] == 0 || seen["127.0.0.22"] == 0 || len(seen) != 2 {
		t.Errorf("got %v", seen)
	}
	set := *r.settings()
	set.sources = []*sockaddr{newSockaddr(netip.MustParseAddrPort("192.0.2.1:0")), newSockaddr(netip.MustParseAddrPort("127.0.0.23:0"))}
	r.set.Store(&set)
	for range 2 {
		_, server, _ := r.pairUp(p)
		if host, _, _ := net.SplitHostPort(server.RemoteAddr().String()); host != "127.0.0.23" {
			t.Errorf("got %s", host)
		}
	}
	must(t, equal("source_address", r.limits.all[limitSource].hits.Load() > 0, true), equal("ports", r.limits.all[limitPorts].hits.Load(), 0))
	lost := set
	lost.sources = set.sources[:1]
	r.set.Store(&lost)
	b := r.allBackends()[0]
	r.dial().Write([]byte("nobody gets this"))
	eventually(t, "the client is held", func() error { return equal("held", r.Status().Held, 1) })
	must(t, equal("ports", r.limits.all[limitPorts].hits.Load(), 0), equal("errors", r.Status().Backends[0].Errors, 0), equal("tier", b.tier.Load(), tierReady))
	for _, bad := range []string{"192.0.2.1", "127.0.0.21", "0.0.0.0", "x", "127.0.0.1:80"} {
		cfg := cfg
		cfg.Sources = append([]string{"127.0.0.21"}, bad)
		var problem *Problem
		if err := cfg.Validate(); !errors.As(err, &problem) || problem.Field != "Sources" || !strings.HasPrefix(strings.Trim(problem.Text, `"`), bad) {
			t.Errorf("%s: got %v", bad, err)
		}
	}
}
