package lb

import (
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"

	"kthwd/lb/check"
	"kthwd/test/harness"
)

func TestStatus(t *testing.T) {
	a, b, dead, gone := newAPIServer(t), newAPIServer(t), unused(t), newAPIServer(t)
	b.status.Store(500)
	cfg := checkedConfig(a, b, gone)
	cfg.BackendCA = a.caFile()
	cfg.DrainTimeout = patience
	r := run(t, cfg, Options{})
	r.awaitState(gone, check.Ready)
	gone.refuse() // its connection stays
	eventually(t, "it is dead", func() error { return equal("state", r.state(gone), "dead") })
	cfg = *r.cfg.Load()
	cfg.Backends = []string{a.addr, b.addr, dead}
	must(t, r.Reload(cfg))
	v := r.visit()
	v.at(t, a)
	eventually(t, "the dead one is known", func() error { return equal("state", r.Status().Backends[2].State, "dead") })
	r.awaitState(b, check.NotReady)
	text, err := json.MarshalIndent(r.Status(), "", "  ")
	must(t, err)
	got := regexp.MustCompile(`"since": "20[^"]*"`).ReplaceAllString(string(text), `"since": "TIME"`)
	got = strings.NewReplacer(r.addr, "LISTEN", a.addr, "A", b.addr, "B", dead, "DEAD", gone.addr, "GONE").Replace(got)
	harness.Golden(t, "testdata/status.json", []byte(regexp.MustCompile(`"(connectErrors|receivedBytes|sentBytes)": \d+`).ReplaceAllString(got, `"$1": N`)+"\n"))
	v.Close()
	r.empty()
	r.endDrains()
}

// Status works before Run.
func TestStatusEarly(t *testing.T) {
	watchLeaks(t)
	cfg := testConfig(unused(t))
	s, err := New(cfg, Options{})
	must(t, err)
	defer s.stopBackends()
	st := s.Status()
	must(t, equal("ready", st.Ready, false), equal("reason", st.Reason, "starting"), equal("backends", len(st.Backends), 1))
}

// A backend that passes its checks again and is held down is said to be held. Without a
// better one it serves, and nothing says that the balancer fails open.
func TestHeldDown(t *testing.T) {
	a, b := newAPIServer(t), newAPIServer(t)
	r := run(t, checkedConfig(a, b), Options{checkHold: patience})
	hold := func(all ...*apiServer) { // it falls soon after it has risen
		for range 2 {
			for _, s := range all {
				r.awaitState(s, check.Ready)
				s.status.Store(500)
				r.awaitState(s, check.NotReady)
				s.status.Store(200)
			}
		}
		for _, s := range all {
			r.awaitState(s, stateHeld)
		}
	}
	shows := func(failOpen bool, up ...float64) {
		t.Helper()
		eventually(t, "the metrics", func() error {
			errs := []error{equal("fail_open", r.value("fail_open", ""), map[bool]float64{true: 1}[failOpen]), equal("failOpen", r.Status().FailOpen, failOpen)}
			for i, s := range []*apiServer{a, b} {
				errs = append(errs, equal("backend_up", r.value("backend_up", s.addr), up[i]))
			}
			return errors.Join(errs...)
		})
	}
	hold(a, b)
	must(t, equal("held", r.value("backends", "held"), 2))
	shows(false, 1, 1)
	r.visit().at(t, a)
	b.kill()
	r.awaitState(b, check.Dead)
	shows(false, 1, 0)
	a.status.Store(500)
	shows(true, 0, 0)
	a.status.Store(200)
	shows(false, 1, 0)
	r.visit().at(t, a)
	if reason := r.Status().Backends[0].Reason; !strings.HasPrefix(reason, "held down for another ") {
		t.Errorf("got the reason %q", reason)
	}
}

// Beside a ready backend, one that is held down is not preferred.
func TestHeldDownBesideReady(t *testing.T) {
	a, b := newAPIServer(t), newAPIServer(t)
	r := run(t, checkedConfig(a, b), Options{checkHold: patience})
	r.awaitState(b, check.Ready)
	for range 2 {
		r.awaitState(a, check.Ready)
		a.status.Store(500)
		r.awaitState(a, check.NotReady)
		a.status.Store(200)
	}
	r.awaitState(a, stateHeld)
	must(t, equal("backend_up", r.value("backend_up", a.addr), 0), equal("fail_open", r.value("fail_open", ""), 0))
	r.visit().at(t, b)
}
