package lb

import (
	"encoding/json"
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
