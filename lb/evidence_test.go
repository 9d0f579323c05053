package lb

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"kthwd/lb/check"
)

// deliver asks a question every 20 ms until the returned function is called, and fails if
// an answer does not come.
func (v *visit) deliver(t *testing.T, from *apiServer) (stop func()) {
	t.Helper()
	quit, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-quit:
				ended <- nil
				return
			case <-time.After(20 * time.Millisecond):
			}
			if who, err := v.who(); err != nil || who != from.addr {
				ended <- fmt.Errorf("%s: %w", who, errors.Join(err, errors.New("the connection did not last")))
				return
			}
		}
	}()
	return func() {
		t.Helper()
		close(quit)
		must(t, receive(t, "the end of a client", ended))
	}
}

// shortEvidence makes the times of cuts short.
func shortEvidence(t *testing.T, d time.Duration) {
	was := killDelay
	killDelay = d
	t.Cleanup(func() { killDelay = was })
}

// A backend whose checks are late, but which delivers, keeps its connections: those that
// deliver, and idle ones beside them.
func TestDeliveringBackendIsNotCut(t *testing.T) {
	shortEvidence(t, 3*time.Second) // deliveries may come that late
	a, b := newAPIServer(t), newAPIServer(t)
	r := run(t, checksTimeOut(a, b), Options{})
	r.awaitTier(a, tierReady)
	r.awaitTier(b, tierReady)
	idle, busy := r.visit(), r.visit()
	idle.at(t, a)
	busy.at(t, a)
	a.delay.Store(int64(time.Hour))
	stop := busy.deliver(t, a)
	r.awaitState(a, check.Dead)
	r.visit().at(t, b) // new clients go elsewhere
	died := r.Status().Backends[0].Since
	eventually(t, "it is said", func() error {
		if reason := r.Status().Backends[0].Reason; !strings.Contains(reason, "timeout: no answer to GET /readyz") || !strings.Contains(reason, "its connections deliver") {
			return errors.New(reason)
		}
		if left := killDelay + 2*time.Second - time.Since(died); left > 0 { // it is asked again after a second
			return fmt.Errorf("another %v", left)
		}
		return nil
	})
	cfg := *r.cfg.Load()
	cfg.CheckTimeout += 100 * time.Millisecond // a new checker knows nothing yet
	must(t, r.Reload(cfg))
	r.awaitState(a, check.Dead)
	stop()
	idle.at(t, a)
	must(t, equal("killed_dead", r.backend(a.addr).closed[endDead].Load(), 0))
	a.suspend() // now it is dead indeed
	busy.cut(t)
	idle.cut(t)
}

// A backend that answers its checks, but late, keeps its connections, also idle ones. One that
// no longer answers does not.
func TestSlowChecksCutNothing(t *testing.T) {
	shortEvidence(t, 3*time.Second)
	a, b := newAPIServer(t), newAPIServer(t)
	r := run(t, checksTimeOut(a, b), Options{})
	r.awaitTier(a, tierReady)
	r.awaitTier(b, tierReady)
	idle := r.visit()
	idle.at(t, a)
	stays := killDelay + time.Second
	for _, slow := range []time.Duration{750 * time.Millisecond, 1500 * time.Millisecond} { // of a timeout of half a second
		a.delay.Store(int64(slow))
		r.awaitState(a, check.Dead)
		r.visit().at(t, b)
		died := r.Status().Backends[0].Since
		eventually(t, "it is said, beyond the time of a cut", func() error {
			if reason := r.Status().Backends[0].Reason; !strings.Contains(reason, "it answers checks late, and its connections stay") {
				return errors.New(reason)
			}
			if left := stays - time.Since(died); left > 0 {
				return fmt.Errorf("another %v", left)
			}
			return nil
		})
		stays += killDelay
	}
	must(t, equal("killed_dead", r.backend(a.addr).closed[endDead].Load(), 0))
	idle.at(t, a)
	a.suspend()
	idle.cut(t)
}

// Without a delivery nothing is known for a dead backend's connections: they are cut.
func TestSilentBackendIsCut(t *testing.T) {
	shortEvidence(t, 300*time.Millisecond)
	a, b := newAPIServer(t), newAPIServer(t)
	r := run(t, checksTimeOut(a, b), Options{})
	r.awaitTier(a, tierReady)
	r.awaitTier(b, tierReady)
	v := r.visit()
	v.at(t, a)
	a.delay.Store(int64(time.Hour))
	v.cut(t)
}

func TestCutChoice(t *testing.T) {
	shortEvidence(t, 300*time.Millisecond)
	for which, cuts := range map[string]struct{ suspended, refusing bool }{
		CutDead: {true, true}, CutUnreachable: {false, true}, CutNever: {false, false},
	} {
		for fault, cut := range map[string]bool{"suspended": cuts.suspended, "refusing": cuts.refusing} {
			t.Run(which+" "+fault, func(t *testing.T) {
				a, b := newAPIServer(t), newAPIServer(t)
				cfg := checksTimeOut(a, b)
				cfg.Cut = which
				r := run(t, cfg, Options{})
				r.awaitTier(a, tierReady)
				r.awaitTier(b, tierReady)
				v := r.visit()
				v.at(t, a)
				if fault == "refusing" {
					a.refuse()
				} else {
					a.suspend()
				}
				if cut {
					v.cut(t)
					return
				}
				r.awaitState(a, check.Dead)
				died := r.Status().Backends[0].Since
				eventually(t, "the time of a cut has passed", func() error {
					if left := 4*killDelay - time.Since(died); left > 0 {
						return fmt.Errorf("another %v", left)
					}
					return nil
				})
				a.resume()
				v.at(t, a)
			})
		}
	}
}

func TestLives(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, tt := range []struct {
		name           string
		shown, failing time.Time
		want           bool
	}{
		{"before the first failed check", ago(2 * time.Second), ago(time.Second), false},
		{"about when that ended", ago(time.Second - time.Millisecond), ago(time.Second), false},
		{"after it", ago(500 * time.Millisecond), ago(time.Second), true},
		{"after it, long ago", ago(time.Minute), ago(time.Hour), false},
		{"no failed check", now, time.Time{}, false},
		{"no proof", time.Time{}, ago(time.Hour), false},
	} {
		if got := lives(tt.shown, tt.failing, now); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}
