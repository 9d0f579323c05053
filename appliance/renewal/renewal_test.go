package renewal

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"kthwd/appliance/pki"
	"kthwd/appliance/status"
)

const day = 24 * time.Hour

// events are those of a test.
type events struct {
	mu  sync.Mutex
	all []string
}

func (e *events) add(warning bool, reason, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, fmt.Sprintf("%v %s %s", warning, reason, text))
}

func (e *events) take() (all []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	all, e.all = e.all, nil
	return all
}

func newRenewer(t *testing.T) (*Renewer, pki.Layout, *events) {
	t.Helper()
	l := pki.Layout{Dir: filepath.Join(t.TempDir(), "data")}
	if _, err := pki.Ensure(l, pki.Spec{Server: "https://127.0.0.1:6443", Local: []string{"127.0.0.1"}, ServiceIP: net.ParseIP("10.32.0.1")}); err != nil {
		t.Fatal(err)
	}
	e := &events{}
	return New(Config{Layout: l, Event: e.add}), l, e
}

// wall is a time without the monotonic clock, which the tests do not move.
func wall(t time.Time) time.Time { return t.Round(0) }

func end(t *testing.T, file string) time.Time {
	t.Helper()
	used := pki.Used(file)
	if len(used) == 0 {
		t.Fatalf("%s holds no certificate", file)
	}
	return used[0].NotAfter
}

func (r *Renewer) timesOf(file string) (ok, failed int) {
	return int(testutil.ToFloat64(r.count.WithLabelValues(file, "ok"))), int(testutil.ToFloat64(r.count.WithLabelValues(file, "failed")))
}

func TestLook(t *testing.T) {
	r, l, events := newRenewer(t)
	file, now := l.Cert(pki.NameKubernetes), wall(time.Now())
	first := end(t, file)
	r.look(now)
	r.last = time.Time{} // a day or more passes
	r.look(now.Add(200 * day))
	if ok, failed := r.timesOf(file); ok+failed > 0 || !end(t, file).Equal(first) || len(r.Findings()) > 0 || len(events.take()) > 0 {
		t.Fatalf("renewed before it was due: %v", r.Findings())
	}
	r.last = time.Time{}
	r.look(now.Add(250 * day))
	if ok, failed := r.timesOf(file); ok != 1 || failed != 0 || !end(t, file).After(first) {
		t.Errorf("due: %d renewals, %d failures, ends %v", ok, failed, end(t, file))
	}
	if all := events.take(); len(all) != 1 || !strings.HasPrefix(all[0], "false CertificateRenewed kubernetes.pem, admin.pem, ") {
		t.Errorf("events %q", all)
	}
	if n := testutil.CollectAndCount(r, "kthwd_certificate_renewal_due_timestamp_seconds"); n != 10 {
		t.Errorf("%d files have a date, want 10", n)
	}
}

// Without the key of the CA, one finding names all files and the way out; it grows worse, and
// ends when the key is there.
func TestCannot(t *testing.T) {
	r, l, events := newRenewer(t)
	key, err := os.ReadFile(l.CAKey())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(l.CAKey()); err != nil {
		t.Fatal(err)
	}
	now := wall(time.Now())
	for left, want := range map[time.Duration]status.Health{100 * day: status.Healthy, 20 * day: status.Degraded} {
		r.last, r.stamp = time.Time{}, ""
		r.look(now.Add(365*day - left))
		all := r.Findings()
		if len(all) != 1 || all[0].Health != want || all[0].Kind != "certificate_renewal" ||
			!strings.HasPrefix(all[0].Text, "kubernetes.pem, admin.pem, kube-controller-manager.pem and 5 more: due for renewal before ") ||
			!strings.HasPrefix(all[0].Do, "kthwd pki renew kubernetes admin kube-controller-manager kube-scheduler kthwd-health --csr-out=DIR") {
			t.Errorf("%v before the end: %+v, want one that is %v", left, all, want)
		}
	}
	if all := events.take(); len(all) == 0 || !strings.HasPrefix(all[len(all)-1], "true CertificateNotRenewed ") {
		t.Errorf("events %q", all)
	}
	if err := os.WriteFile(l.CAKey(), key, 0o600); err != nil {
		t.Fatal(err)
	}
	r.last = time.Time{}
	r.look(now.Add(345 * day))
	if ok, _ := r.timesOf(l.Cert(pki.NameKubernetes)); ok != 1 || len(r.Findings()) > 0 {
		t.Errorf("with the key: %d renewals, %+v", ok, r.Findings())
	}
}

// A directory in which nothing can be written keeps the old files and counts failures.
func TestFails(t *testing.T) {
	r, l, _ := newRenewer(t)
	if err := os.WriteFile(l.Kept(), nil, 0o600); err != nil { // in place of the directory, for root as well
		t.Fatal(err)
	}
	file := l.Cert(pki.NameKubernetes)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	now := wall(time.Now()).Add(300 * day)
	r.look(now)
	if ok, failed := r.timesOf(file); ok != 0 || failed != 1 {
		t.Errorf("%d renewals, %d failures", ok, failed)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("the file has changed: %v", err)
	}
	if all := r.Findings(); len(all) != 10 || !strings.Contains(all[0].Text, "not renewed: keep the old one: ") {
		t.Errorf("findings %+v", all)
	}
	r.last = time.Time{}
	r.look(now.Add(time.Minute)) // too early
	if _, failed := r.timesOf(file); failed != 1 {
		t.Errorf("tried again at once")
	}
	if err := os.Remove(l.Kept()); err != nil {
		t.Fatal(err)
	}
	r.last = time.Time{}
	r.look(now.Add(tryEvery + time.Minute))
	if ok, _ := r.timesOf(file); ok != 1 || len(r.Findings()) > 0 {
		t.Errorf("with the cause removed: %d renewals, %+v", ok, r.Findings())
	}
}

// A clock that jumps ahead is not believed for a while.
func TestClockJumps(t *testing.T) {
	r, l, _ := newRenewer(t)
	file, now := l.Cert(pki.NameKubernetes), wall(time.Now())
	r.look(now)
	monotonic := func(wall time.Duration) {
		r.held = time.Time{}
		r.last = now
		r.jumped(now.Add(wall), wall, time.Minute)
	}
	monotonic(time.Minute)
	if !r.held.IsZero() {
		t.Error("a minute that is one is not believed")
	}
	monotonic(300 * day)
	r.look(now.Add(300 * day))
	if ok, _ := r.timesOf(file); ok != 0 {
		t.Error("renewed at a time that is not believed")
	}
	r.last = time.Time{}
	r.look(now.Add(300*day + disbelief + time.Second))
	if ok, _ := r.timesOf(file); ok != 1 {
		t.Error("not renewed later")
	}
}
