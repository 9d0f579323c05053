package lb

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

type loggedLine struct {
	Time     time.Time
	Client   string
	Proxy    string // of a client behind a proxy
	Listener string
	Backend  string
	Received int
	Sent     int
	Seconds  float64
	End      string
}

func accessLines(t *testing.T, path string) (all []loggedLine) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	for _, text := range strings.SplitAfter(string(b), "\n") {
		if !strings.HasSuffix(text, "\n") {
			continue
		}
		var l loggedLine
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		all = append(all, l)
	}
	return all
}

func TestAccessLog(t *testing.T) {
	p := newPeer(t)
	path := filepath.Join(t.TempDir(), "access.log")
	cfg := testConfig(p.addr)
	cfg.AccessLog, cfg.HoldTimeout, cfg.FirstByteTimeout = path, 100*time.Millisecond, time.Hour
	r := run(t, cfg, Options{}).noDefer()
	dead := unused(t)
	for _, tt := range []struct {
		end            string
		backend        string
		received, sent int
		do             func() net.Addr
	}{
		{"client", p.addr, 8 + 5, 7, func() net.Addr {
			client, server, _ := r.pairUp(p)
			say(t, client, server, "hello")
			say(t, server, client, "welcome")
			must(t, client.Close(), expectEOF(server), server.Close())
			return client.LocalAddr()
		}},
		{"backend", p.addr, 8, 3, func() net.Addr {
			client, server, _ := r.pairUp(p)
			say(t, server, client, "bye")
			must(t, server.Close(), expectEOF(client), client.Close())
			return client.LocalAddr()
		}},
		{"first_byte_timeout", "", 0, 0, func() net.Addr {
			before := *r.cfg.Load()
			silent := before
			silent.FirstByteTimeout = 100 * time.Millisecond
			must(t, r.Reload(silent))
			c := r.dial()
			must(t, expectEOF(c), r.Reload(before))
			return c.LocalAddr()
		}},
		{"no_backend", "", 0, 0, func() net.Addr {
			cfg := *r.cfg.Load()
			cfg.Backends = []string{dead}
			must(t, r.Reload(cfg))
			c := r.dial()
			must(t, write(c, "x"), expectGone(c))
			return c.LocalAddr()
		}},
	} {
		t.Run(tt.end, func(t *testing.T) {
			before, begun := len(accessLines(t, path)), time.Now()
			client := tt.do()
			eventually(t, "a line", func() error { return equal("lines", len(accessLines(t, path)), before+1) })
			l := accessLines(t, path)[before]
			must(t, equal("client", l.Client, client.String()), equal("listener", l.Listener, r.addr), equal("backend", l.Backend, tt.backend),
				equal("received", l.Received, tt.received), equal("sent", l.Sent, tt.sent), equal("end", l.End, tt.end))
			if now := time.Now(); l.Seconds <= 0 || l.Seconds > now.Sub(begun).Seconds() || l.Time.Before(begun) || l.Time.After(now) {
				t.Errorf("%+v, of a connection between %v and %v", l, begun, now)
			}
		})
	}

	t.Run("rotated", func(t *testing.T) {
		old := path + ".1"
		must(t, os.Rename(path, old))
		before := len(accessLines(t, old))
		cfg := *r.cfg.Load()
		cfg.Backends = []string{p.addr}
		must(t, r.Reload(cfg))
		client, server, _ := r.pairUp(p)
		must(t, client.Close(), expectEOF(server), server.Close())
		eventually(t, "a line in the new file", func() error { return equal("lines", len(accessLines(t, path)), 1) })
		must(t, equal("lines in the old file", len(accessLines(t, old)), before))
		cfg.AccessLog = ""
		must(t, r.Reload(cfg))
		client, server, _ = r.pairUp(p)
		must(t, client.Close(), expectEOF(server), server.Close())
		r.empty()
		must(t, equal("lines", len(accessLines(t, path)), 1))
	})
}

// A full disk loses lines, which are counted, and delays no connection.
func TestAccessLogFullDisk(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	watchLeaks(t)
	var dropped atomic.Uint64
	a, err := openAccessLog("/dev/full", func() { dropped.Add(1) })
	must(t, err)
	for range 3 * accessBacklog {
		a.add(&pair{listener: &listener{account: &account{address: ":6443"}}}, endClient, time.Second)
	}
	a.close()
	if dropped.Load() == 0 {
		t.Error("nothing was dropped")
	}
}

func TestAccessLogErrors(t *testing.T) {
	cfg := testConfig("192.0.2.1:1")
	cfg.AccessLog = filepath.Join(t.TempDir(), "none", "access.log")
	r := begin(t, cfg, Options{})
	err := receive(t, "the end of Run", r.ended)
	var p *Problem
	if !errors.As(err, &p) || p.Field != "AccessLog" || !strings.Contains(fmt.Sprint(err), cfg.AccessLog) {
		t.Errorf("got %v", err)
	}
}
