package bench

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// measureIdle reads memory once and CPU time over a window, of a cluster that
// nobody has used: no client is connected.
func measureIdle(t *testing.T, b *bench, p *plane, round int, ready time.Time) {
	restarts := p.restarts()
	time.Sleep(time.Until(ready.Add(b.idle / 2)))
	before, begin := p.ticks(), time.Now()
	if b.profile > 0 {
		go b.saveProfile(t.Context(), p, round)
	}
	time.Sleep(time.Until(ready.Add(b.idle)))
	m := p.memory(t)
	time.Sleep(time.Until(begin.Add(b.idle)))
	after, took := p.ticks(), time.Since(begin)
	if err := p.broken(); err != nil || p.restarts() != restarts {
		t.Fatalf("%v: a program ended in the idle window: %v", p.side, err)
	}
	sum := 0.0
	for name := range after {
		used := (after[name] - before[name]) * 60 / took.Seconds()
		sum += used
		t.Logf("idle: %s: %.0f ticks per minute", name, used)
	}
	b.results.add(metricCPU, p.side, round, sum)
	b.results.add(metricRSS, p.side, round, m.rss)
	b.results.add(metricPSS, p.side, round, m.pss)
	b.results.add(metricAnon, p.side, round, m.anon)
}

// saveProfile saves a CPU profile of the process that serves the API.
func (b *bench) saveProfile(ctx context.Context, p *plane, round int) {
	client, err := p.freshClient()
	if err != nil {
		return
	}
	client.Timeout = b.profile + 10*time.Second
	url := "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(p.ports.Secure)) +
		"/debug/pprof/profile?seconds=" + strconv.Itoa(int(b.profile.Seconds()))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if data, err := io.ReadAll(resp.Body); err == nil {
		_ = os.WriteFile(filepath.Join(b.dir, "idle-"+strconv.Itoa(round+1)+"-"+p.side.String()+".pprof"), data, 0o644)
	}
}
