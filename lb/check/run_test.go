package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// took is the duration of a scripted check that does not time out.
const took = time.Millisecond

var defaults = Config{
	Backend: "a:6443", Mode: HTTPS, Path: "/readyz",
	Interval: time.Second, Timeout: time.Second, Fall: 2, Rise: 2,
}

// A script returns a backend's answer at a time since the start.
type script func(at time.Duration) Kind

func always(k Kind) script { return func(time.Duration) Kind { return k } }

// then returns a script that is s until at, and next from then on.
func (s script) then(at time.Duration, next script) script {
	return func(now time.Duration) Kind {
		if now < at {
			return s(now)
		}
		return next(now)
	}
}

// cycle is a and b by turns.
func cycle(a Kind, up time.Duration, b Kind, down time.Duration) script {
	return func(at time.Duration) Kind {
		if at%(up+down) < up {
			return a
		}
		return b
	}
}

// A rig runs a Checker against a script, in a synctest bubble.
type rig struct {
	*Checker
	t       *testing.T
	begin   time.Time
	changed func(Status) // called by Changed too
	logged  bytes.Buffer
	stop    func()

	mu sync.Mutex
	record
}

// A record holds the observations of a rig.
type record struct {
	starts  []time.Duration // of checks
	changes []Status        // passed to Changed
	states  []time.Duration // when State changed, without the first verdict
	results []Result
}

// newRig makes a rig; start runs it.
func newRig(t *testing.T, cfg Config, s script) *rig {
	r := &rig{t: t, begin: time.Now(), changed: func(Status) {}}
	cfg.Log = slog.New(slog.NewTextHandler(&r.logged, nil))
	r.Checker = New(cfg, func() (netip.AddrPort, error) { return netip.AddrPort{}, errors.New("unused") }, Observer{
		Changed: r.note,
		Checked: func(res Result) { r.write(func() { r.results = append(r.results, res) }) },
	})
	r.probe = func(ctx context.Context) Result {
		r.started()
		return r.play(ctx, s(r.now()))
	}
	r.spread = func(d time.Duration) time.Duration { return d }
	r.moment = r.begin
	return r
}

func (r *rig) write(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// seen is a copy of the record.
func (r *rig) seen() (c record) {
	r.write(func() {
		c = record{slices.Clone(r.starts), slices.Clone(r.changes), slices.Clone(r.states), slices.Clone(r.results)}
	})
	return c
}

// since is the starts of checks at a time or after it.
func (r *rig) since(at time.Duration) []time.Duration {
	return slices.DeleteFunc(r.seen().starts, func(d time.Duration) bool { return d < at })
}

// lastReported returns the last Status passed to Changed.
func (r *rig) lastReported() Status { c := r.seen().changes; return c[len(c)-1] }

func (r *rig) started() { r.write(func() { r.starts = append(r.starts, r.now()) }) }

func (r *rig) now() time.Duration { return time.Since(r.begin) }

func (r *rig) note(s Status) {
	r.write(func() {
		if n := len(r.changes); n > 0 && r.changes[n-1].State != s.State && r.changes[n-1].State != Unknown {
			r.states = append(r.states, r.now())
		}
		r.changes = append(r.changes, s)
	})
	r.changed(s)
}

// play takes the time that a check with this result takes.
func (r *rig) play(ctx context.Context, k Kind) Result {
	res := Result{Kind: k, ConnectPhase: k == KindConnectError}
	if k != KindOK {
		res.Err = "as scripted"
	}
	if k == KindTimeout {
		<-ctx.Done()
		return res
	}
	select {
	case <-ctx.Done():
	case <-time.After(took):
	}
	return res
}

func (r *rig) start() *rig {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	r.stop = func() { cancel(); <-done }
	r.t.Cleanup(r.stop)
	return r
}

// until lets the time since the start become at.
func (r *rig) until(at time.Duration) {
	time.Sleep(at - r.now())
	synctest.Wait()
}

func (r *rig) wantState(want State) {
	r.t.Helper()
	if got := r.Status(); got.State != want {
		r.t.Errorf("state after %v: got %s (%s), want %s", r.now(), got.State, got.Reason, want)
	}
}

func TestFirstVerdict(t *testing.T) {
	for _, tt := range []struct {
		kind Kind
		want State
		by   time.Duration
	}{
		{KindOK, Ready, took},
		{KindNotReady, NotReady, took},
		{KindBadStatus, NotReady, took},
		{KindBadCert, NotReady, took},
		{KindConnectError, Dead, 2 * took},
		{KindTLSError, Dead, 2 * took},
		{KindTimeout, Dead, 2 * time.Second},
	} {
		t.Run(string(tt.kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, defaults, always(tt.kind)).start()
				r.until(tt.by - took/2)
				r.wantState(Unknown)
				r.until(tt.by + took/2)
				r.wantState(tt.want)
				s := r.Status()
				if s.Suspect != (tt.want != Ready) || s.Last != tt.kind || !strings.HasPrefix(s.Reason, string(tt.kind)) {
					t.Errorf("got %+v", s)
				}
			})
		})
	}
}

// Whatever happens to a backend that was well, it is suspect after the first bad
// result, and the state is right in time.
func TestFall(t *testing.T) {
	const at = 10 * time.Second
	for _, tt := range []struct {
		name        string
		after       script
		want        State
		suspect, by time.Duration // since at, at the latest
	}{
		{"killed", always(KindConnectError), Dead, 1200 * time.Millisecond, 1200 * time.Millisecond},
		{"stopped", always(KindTimeout), Dead, 2200 * time.Millisecond, 3200 * time.Millisecond},
		{"no TLS", always(KindTLSError), Dead, 1200 * time.Millisecond, 1200 * time.Millisecond},
		{"not ready", always(KindNotReady), NotReady, 1200 * time.Millisecond, 1400 * time.Millisecond},
		{"certificate expired", always(KindBadCert), NotReady, 1200 * time.Millisecond, 1400 * time.Millisecond},
		{"anonymous access off", always(KindBadStatus), NotReady, 1200 * time.Millisecond, 1400 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, defaults, always(KindOK).then(at, tt.after)).start()
				r.until(at)
				r.wantState(Ready)
				r.until(at + tt.suspect)
				if !r.Status().Suspect {
					t.Errorf("not suspect %v after it", tt.suspect)
				}
				r.until(at + tt.by)
				r.wantState(tt.want)
				r.until(at + time.Minute)
				if got := r.Status().Transitions; got.NotReady+got.Dead != 1 || got.Ready != 1 {
					t.Errorf("got transitions %+v, want one to ready and one to %s", got, tt.want)
				}
			})
		})
	}
}

// One bad result makes a backend suspect, and nothing else.
func TestBlip(t *testing.T) {
	for _, kind := range Kinds[1:] {
		t.Run(string(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				r := newRig(t, defaults, func(time.Duration) Kind {
					if n++; n == 5 {
						return kind
					}
					return KindOK
				}).start()
				r.until(20 * time.Second)
				var suspect []bool
				for _, c := range r.seen().changes {
					suspect = append(suspect, c.Suspect)
					if c.State != Ready {
						t.Errorf("got state %s", c.State)
					}
				}
				// An error of connect changes Connectable in the same call.
				if want := []bool{false, true, false}; !slices.Equal(suspect, want) {
					t.Errorf("got suspect %v, want %v", suspect, want)
				}
				if s := r.Status(); s.SuspectReason != "" || !s.Connectable {
					t.Errorf("got %+v", s)
				}
			})
		})
	}
}

// feed gives a machine one result a second.
func feed(m *machine, now time.Time, kinds ...Kind) {
	for i, k := range kinds {
		m.see(Result{Kind: k}, m.reports, now.Add(time.Duration(i)*time.Second))
	}
}

// What a backend said last about leaving stays true until it answers again.
func TestLeaving(t *testing.T) {
	m := newMachine(Config{Mode: HTTPS, Fall: 2, Rise: 2}, time.Now())
	for i, tt := range []struct {
		seen Result
		want bool
	}{
		{Result{Kind: KindOK}, false},
		{Result{Kind: KindTimeout}, false},
		{Result{Kind: KindNotReady, Leaving: true}, true},
		{Result{Kind: KindTimeout}, true},
		{Result{Kind: KindConnectError, ConnectPhase: true, NoVerdict: "no descriptor"}, true},
		{Result{Kind: KindConnectError, ConnectPhase: true}, true},
		{Result{Kind: KindNotReady}, false}, // it starts again
		{Result{Kind: KindNotReady, Leaving: true}, true},
		{Result{Kind: KindOK}, false},
	} {
		m.see(tt.seen, 0, time.Now())
		if got := m.snapshot(time.Now()).Leaving; got != tt.want {
			t.Errorf("result %d, %s: got %v, want %v", i, tt.seen.Kind, got, tt.want)
		}
	}
}

func TestRows(t *testing.T) {
	const ok, no, dead = KindOK, KindNotReady, KindConnectError
	for _, tt := range []struct {
		name       string
		fall, rise int
		kinds      []Kind
		want       State
	}{
		{"nothing", 2, 2, nil, Unknown},
		{"a failure is no verdict yet", 2, 2, []Kind{dead}, Unknown},
		{"an answer after it is", 2, 2, []Kind{dead, no}, NotReady},
		{"a good one after it is", 2, 2, []Kind{dead, ok}, Ready},
		{"fall 1", 1, 1, []Kind{dead}, Dead},
		{"one failure", 2, 2, []Kind{ok, dead}, Ready},
		{"two failures", 2, 2, []Kind{ok, dead, dead}, Dead},
		{"two with a good one between", 2, 2, []Kind{ok, dead, ok, dead}, Ready},
		{"two of three", 3, 2, []Kind{ok, dead, dead}, Ready},
		{"an answer and a failure", 2, 2, []Kind{ok, no, dead}, NotReady},
		{"a failure and an answer", 2, 2, []Kind{ok, dead, no}, NotReady},
		{"by turns never dead", 2, 2, []Kind{ok, dead, no, dead, no, dead, no}, NotReady},
		{"not ready, then dead", 2, 2, []Kind{no, dead, dead}, Dead},
		{"not ready, one failure", 2, 2, []Kind{no, dead}, NotReady},
		{"dead, one answer", 2, 2, []Kind{dead, dead, no}, Dead},
		{"dead, two answers", 2, 2, []Kind{dead, dead, no, no}, NotReady},
		{"dead, one good", 2, 2, []Kind{dead, dead, ok}, Dead},
		{"dead, two good", 2, 2, []Kind{dead, dead, ok, ok}, Ready},
		{"rise 3", 2, 3, []Kind{no, ok, ok}, NotReady},
		{"rise 3, interrupted", 2, 3, []Kind{no, ok, ok, no, ok, ok}, NotReady},
		{"rise 3, enough", 2, 3, []Kind{no, ok, ok, ok}, Ready},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(Config{Mode: HTTPS, Fall: tt.fall, Rise: tt.rise}, time.Now())
			feed(&m, time.Now(), tt.kinds...)
			if m.s.State != tt.want {
				t.Errorf("got %s, want %s", m.s.State, tt.want)
			}
		})
	}
}

func TestPace(t *testing.T) {
	const ms = time.Millisecond
	flapping := cycle(KindOK, time.Second, KindNotReady, time.Second)
	for _, tt := range []struct {
		name        string
		interval    time.Duration
		s           script
		from, to    time.Duration // the period examined
		least, most time.Duration // between two starts
	}{
		{"ready", time.Second, always(KindOK), 0, time.Minute, 900 * ms, 1100 * ms},
		{"not ready", time.Second, always(KindNotReady), 0, time.Minute, 900 * ms, 1100 * ms},
		{"dead", time.Second, always(KindConnectError), time.Second, time.Minute, 180 * ms, 220 * ms},
		{"black hole", time.Second, always(KindTimeout), 0, time.Minute, time.Second, time.Second},
		{"held down", time.Second, flapping.then(10*time.Second, always(KindOK)), 10500 * ms, 15 * time.Second, 180 * ms, 220 * ms},
		{"short interval", 50 * ms, always(KindConnectError), time.Second, time.Minute, 45 * ms, 55 * ms},
		{"long interval", 10 * time.Second, always(KindOK), 0, 10 * time.Minute, 9 * time.Second, 11 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := defaults
				cfg.Interval = tt.interval
				r := newRig(t, cfg, tt.s).start()
				r.until(tt.to)
				starts := r.since(tt.from)
				if len(starts) < 10 {
					t.Fatalf("got starts %v", starts)
				}
				for i, at := range starts[1:] {
					if d := at - starts[i]; d < tt.least || d > tt.most {
						t.Errorf("got %v between two starts, want %v to %v", d, tt.least, tt.most)
					}
				}
			})
		})
	}
}

func TestFlapping(t *testing.T) {
	for _, tt := range []struct {
		name     string
		up, down time.Duration
		bad      Kind
		most     int // changes of state in a minute, after the first verdict
	}{
		{"2s 2s refused", 2 * time.Second, 2 * time.Second, KindConnectError, 3},
		{"2s 2s stopped", 2 * time.Second, 2 * time.Second, KindTimeout, 3},
		{"2s 2s not ready", 2 * time.Second, 2 * time.Second, KindNotReady, 3},
		{"1s 1s refused", time.Second, time.Second, KindConnectError, 3},
		{"4s 1s refused", 4 * time.Second, time.Second, KindConnectError, 3},
		{"7s 3s refused", 7 * time.Second, 3 * time.Second, KindConnectError, 5},
		{"15s 2s refused", 15 * time.Second, 2 * time.Second, KindConnectError, 6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, defaults, cycle(KindOK, tt.up, tt.bad, tt.down)).start()
				r.until(time.Minute)
				if at := r.seen().states; len(at) > tt.most || len(at) == 0 {
					t.Errorf("got %d changes, at %v; want 1 to %d", len(at), at, tt.most)
				}
			})
		})
	}
}

// Each row is one stay in Ready and how long the next rise is put off after it.
func TestHoldDown(t *testing.T) {
	m := newMachine(defaults, time.Now())
	now := time.Now()
	feed(&m, now, KindOK)
	for i, tt := range []struct{ up, hold time.Duration }{
		{10 * time.Second, 0}, // the first fall is free
		{10 * time.Second, 5 * time.Second},
		{59 * time.Second, 10 * time.Second},
		{time.Second, 20 * time.Second},
		{time.Second, 40 * time.Second},
		{time.Second, 60 * time.Second},
		{time.Second, 60 * time.Second},
		{90 * time.Second, 0}, // long enough not to count, too short to forget
		{time.Second, 60 * time.Second},
		{121 * time.Second, 0}, // forgotten
		{time.Second, 5 * time.Second},
	} {
		now = now.Add(tt.up)
		m.see(Result{Kind: KindTimeout}, 0, now)
		m.see(Result{Kind: KindTimeout}, 0, now)
		if m.s.State != Dead || m.hold != tt.hold {
			t.Errorf("row %d: got %s with hold %v, want dead with %v", i, m.s.State, m.hold, tt.hold)
		}
		began := now
		for m.s.State != Ready {
			m.see(Result{Kind: KindOK}, 0, now)
			now = now.Add(100 * time.Millisecond)
		}
		if d := now.Sub(began); d < tt.hold || d > tt.hold+200*time.Millisecond {
			t.Errorf("row %d: got up after %v of good checks, want %v", i, d, tt.hold)
		}
	}
}

func TestHeldDownStatus(t *testing.T) {
	m := newMachine(defaults, time.Now())
	now := time.Now()
	feed(&m, now, KindOK, KindTimeout, KindTimeout, KindOK, KindOK, KindTimeout, KindTimeout)
	now = now.Add(10 * time.Second)
	for _, tt := range []struct {
		after   time.Duration
		kind    Kind
		want    string
		suspect bool
	}{
		{0, KindOK, "held down for another 5s: it fell 2 times", false},
		{1500 * time.Millisecond, KindOK, "held down for another 4s: it fell 2 times", false},
		{2 * time.Second, KindTimeout, "timeout", true}, // begins anew
		{3 * time.Second, KindOK, "held down for another 5s: it fell 2 times", false},
		{7900 * time.Millisecond, KindOK, "held down for another 1s: it fell 2 times", false},
		{8 * time.Second, KindOK, "ok", false},
	} {
		m.see(Result{Kind: tt.kind}, 0, now.Add(tt.after))
		held := strings.HasPrefix(tt.want, "held")
		if s := m.snapshot(now.Add(tt.after)); s.Reason != tt.want || s.Suspect != tt.suspect || s.Held != held {
			t.Errorf("after %v: got %q, suspect %v, held %v; want %q, %v, %v", tt.after, s.Reason, s.Suspect, s.Held, tt.want, tt.suspect, held)
		}
	}
	if m.s.State != Ready {
		t.Errorf("got %s at the end", m.s.State)
	}
}

// A check that comes back long after its deadline was not scheduled; neither were we.
func TestLateEnd(t *testing.T) {
	for _, tt := range []struct {
		name string
		over time.Duration // beyond the deadline
		want State
		late bool
	}{
		{"a little", 400 * time.Millisecond, Dead, false},
		{"much", 600 * time.Millisecond, Ready, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, defaults, nil)
				r.probe = func(ctx context.Context) Result {
					if r.now() < 3*time.Second {
						return Result{Kind: KindOK}
					}
					<-ctx.Done()
					time.Sleep(tt.over)
					return Result{Kind: KindTimeout, Err: "as scripted"}
				}
				r.start().until(30 * time.Second)
				r.wantState(tt.want)
				if s := r.Status(); s.Late > 0 != tt.late || s.Suspect == tt.late {
					t.Errorf("got late %d, suspect %v", s.Late, s.Suspect)
				}
				results := r.seen().results
				if last := results[len(results)-1]; last.NoVerdict != "" != tt.late {
					t.Errorf("got result %+v", last)
				}
			})
		})
	}
}

// A timer that fires late has the same meaning. Here an observer delays Run.
func TestLateStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := defaults
		cfg.Fall = 1
		r := newRig(t, cfg, always(KindOK).then(5*time.Second, always(KindConnectError)).then(8*time.Second, always(KindOK)))
		r.changed = func(s Status) {
			if s.Suspect && r.now() < 5*time.Second {
				time.Sleep(5*time.Second + took/2 - r.now())
			}
		}
		r.start().until(3500 * time.Millisecond)
		r.ConnectFailed("refused") // a check is due now, and will begin 1.5 s late
		r.until(5*time.Second + took*2)
		r.wantState(Ready)
		if s := r.Status(); s.Late != 1 {
			t.Errorf("got late %d, want 1", s.Late)
		}
		r.until(5*time.Second + took*4) // the one after it was punctual, and counts
		r.wantState(Dead)
	})
}

func TestLate(t *testing.T) {
	due := time.Now()
	for _, tt := range []struct {
		name                  string
		start, end, oversleep time.Duration
		want                  string
	}{
		{"punctual", 0, time.Second, 0, ""},
		{"a little", time.Second, 2500 * time.Millisecond, 500 * time.Millisecond, ""},
		{"began late", 1001 * time.Millisecond, 1002 * time.Millisecond, 0, "the check began 1.001s late: no CPU"},
		{"ended late", 0, 1501 * time.Millisecond, 0, "the check ended 501ms late: no CPU"},
		{"slept", 0, time.Second, 600 * time.Millisecond, "the check ran 600ms late: no CPU"},
	} {
		trial := trial{due: due, start: due.Add(tt.start), end: due.Add(tt.end), oversleep: tt.oversleep}
		if got := trial.late(time.Second); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// A lack of descriptors proves nothing about the backend, and constant retries do not
// cure it.
func TestOurFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, defaults, nil)
		r.probe = func(context.Context) Result {
			r.started()
			if r.now() < 5*time.Second {
				return Result{Kind: KindOK}
			}
			const e = "socket: too many open files"
			return Result{Kind: KindConnectError, ConnectPhase: true, Err: e, NoVerdict: e, Shortage: syscall.EMFILE}
		}
		r.start().until(15 * time.Second)
		r.wantState(Ready)
		if s := r.Status(); s.Suspect || s.SuspectReason != "" || s.Late == 0 {
			t.Errorf("got %+v", s)
		}
		if n := len(r.since(5 * time.Second)); n > 56 {
			t.Errorf("got %d checks in 10 s", n)
		}
	})
}

func TestConnectFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, defaults, always(KindOK))
		r.jitter = func(d time.Duration) time.Duration { return d }
		r.start().until(2500 * time.Millisecond)
		r.ConnectFailed("connection\nrefused")
		if s := r.Status(); !s.Suspect || s.SuspectReason != "connect failed: connection refused" || s.State != Ready {
			t.Errorf("got %+v", s)
		}
		synctest.Wait()
		if !r.lastReported().Suspect {
			t.Error("Changed was not called at once")
		}
		if got := r.since(2100 * time.Millisecond); !slices.Equal(got, []time.Duration{2500 * time.Millisecond}) {
			t.Errorf("got checks at %v, want one at once", got)
		}
		r.until(2500*time.Millisecond + 2*took)
		if s := r.Status(); s.Suspect || s.SuspectReason != "" {
			t.Errorf("got %+v after a good check", s)
		}
	})
}

// A backend killed under load is dead after two checks, without waiting for the interval.
func TestConnectFailedToDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const at = 2500 * time.Millisecond
		r := newRig(t, defaults, always(KindOK).then(at, always(KindConnectError)))
		r.jitter = func(d time.Duration) time.Duration { return d }
		r.start().until(at)
		r.ConnectFailed("refused")
		r.until(at + 3*took)
		r.wantState(Dead)
	})
}

func TestConnectFailedIsCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, defaults, always(KindOK)).start()
		r.until(2500 * time.Millisecond)
		for range 1000 {
			r.ConnectFailed("refused")
			time.Sleep(time.Millisecond)
		}
		// Five or six asked for and, as those begin the interval anew, no other.
		starts := r.since(2500 * time.Millisecond)
		if n := len(starts); n < 5 || n > 6 {
			t.Errorf("got %d checks in a second, at %v", n, starts)
		}
		for i := 1; i < len(starts); i++ {
			if d := starts[i] - starts[i-1]; d < extraGap {
				t.Errorf("got two checks within %v", d)
			}
		}
	})
}

// A check that began before a connect failed cannot refute it, but Changed is called
// without waiting for its end.
func TestConnectFailedDuringCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, defaults, nil)
		r.jitter = func(d time.Duration) time.Duration { return d }
		r.probe = func(ctx context.Context) Result {
			r.started()
			time.Sleep(500 * time.Millisecond)
			return Result{Kind: KindOK}
		}
		r.start().until(1200 * time.Millisecond)
		r.ConnectFailed("refused")
		synctest.Wait()
		if !r.lastReported().Suspect {
			t.Error("Changed was not called during the check")
		}
		r.until(1600 * time.Millisecond)
		if !r.Status().Suspect {
			t.Error("a check that began earlier cleared it")
		}
		r.until(2100 * time.Millisecond)
		if r.Status().Suspect {
			t.Error("a check that began later did not clear it")
		}
		if want := 1500 * time.Millisecond; !slices.Contains(r.since(0), want) {
			t.Errorf("got starts %v, want one at %v", r.since(0), want)
		}
	})
}

func TestModeNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := defaults
		cfg.Mode = None
		r := newRig(t, cfg, always(KindConnectError))
		r.wantState(Ready)
		r.start()
		for i, avoid := range []time.Duration{5, 10, 20, 30, 30} {
			for range 10 { // clients that come at the same time count once
				r.ConnectFailed("refused")
			}
			from := r.now()
			r.until(from + avoid*time.Second - time.Millisecond)
			if s := r.Status(); !s.Suspect || s.Connectable || s.SuspectReason != "connect failed: refused" {
				t.Errorf("row %d: got %+v within %v", i, s, avoid*time.Second)
			}
			r.until(from + avoid*time.Second)
			if s := r.Status(); s.Suspect || !s.Connectable {
				t.Errorf("row %d: got %+v after %v", i, s, avoid*time.Second)
			}
		}
		r.ConnectOK()
		r.ConnectFailed("refused")
		from := r.now()
		r.until(from + 5*time.Second)
		if r.Status().Suspect {
			t.Error("ConnectOK did not forgive")
		}
		r.ConnectFailed("refused")
		synctest.Wait()
		r.ConnectOK()
		synctest.Wait()
		if r.lastReported().Suspect || r.Status().Suspect {
			t.Error("ConnectOK did not clear it")
		}
		r.wantState(Ready)
		if got := r.seen(); len(got.starts) > 0 || len(got.states) > 0 {
			t.Errorf("got checks at %v, changes at %v", got.starts, got.states)
		}
	})
}

// Run returns when its context ends, in every phase; synctest fails when a goroutine is
// left.
func TestRunReturns(t *testing.T) {
	for name, mode := range map[string]Mode{"checking": HTTPS, "none": None} {
		for _, at := range []time.Duration{0, took / 2, 500 * time.Millisecond, 1500 * time.Millisecond} {
			t.Run(fmt.Sprint(name, at), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					cfg := defaults
					cfg.Mode = mode
					r := newRig(t, cfg, always(KindOK).then(time.Second, always(KindTimeout))).start()
					r.until(at)
					r.stop()
					if d := r.now() - at; d > 0 {
						t.Errorf("it took %v", d)
					}
					before := len(r.seen().changes)
					r.ConnectFailed("refused") // goes nowhere, and does not block
					r.ConnectFailed("refused")
					synctest.Wait()
					if len(r.seen().changes) != before || !r.Status().Suspect {
						t.Error("Changed was called after Run")
					}
				})
			})
		}
	}
}

func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := always(KindOK).then(3*time.Second, always(KindNotReady)).then(6*time.Second, always(KindConnectError)).then(9*time.Second, always(KindOK))
		r := newRig(t, defaults, s)
		r.jitter = func(d time.Duration) time.Duration { return d }
		r.start().until(30 * time.Second)
		r.stop()
		got := regexp.MustCompile(`(?m)^time=\S+ `).ReplaceAllString(r.logged.String(), "")
		want := `level=INFO msg="backend ready" backend=a:6443 reason=ok was=unknown after=1ms
level=WARN msg="backend not ready" backend=a:6443 reason="not_ready: as scripted" was=ready after=3.2s
level=WARN msg="backend dead" backend=a:6443 reason="connect_error: as scripted" was=not_ready after=3.001s
level=INFO msg="backend ready" backend=a:6443 reason=ok was=dead after=3s
`
		if got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}

func TestJitter(t *testing.T) {
	low, high := time.Hour, time.Duration(0)
	for range 10000 {
		d := jitter(time.Second)
		low, high = min(low, d), max(high, d)
	}
	if low < 900*time.Millisecond || low > 910*time.Millisecond || high > 1100*time.Millisecond || high < 1090*time.Millisecond {
		t.Errorf("got %v to %v, want 900ms to 1.1s", low, high)
	}
}

// The checks of many backends begin at few moments, since each wakes the process. The
// pauses of each backend still differ.
func TestChecksBeginTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const backends, seconds = 60, 20
		var rigs []*rig
		for range backends {
			r := newRig(t, defaults, always(KindOK))
			r.spread = func(d time.Duration) time.Duration { return time.Duration(rand.Float64() * float64(d)) }
			rigs = append(rigs, r.start())
		}
		rigs[0].until(seconds * time.Second)
		moments, all := map[time.Duration]bool{}, 0
		for _, r := range rigs {
			pauses := map[time.Duration]bool{}
			starts := r.since(2 * time.Second)
			for i, at := range starts {
				moments[at] = true
				if i > 0 {
					pauses[at-starts[i-1]] = true
				}
			}
			all += len(starts)
			if len(pauses) < 2 {
				t.Errorf("all pauses of a backend are alike: %v", pauses)
			}
			for p := range pauses {
				if p < 850*time.Millisecond || p > 1150*time.Millisecond {
					t.Errorf("a pause of %v", p)
				}
			}
		}
		if most := int((seconds-2)*time.Second/apart) + 1; len(moments) > most {
			t.Errorf("%d checks began at %d moments, more than %d", all, len(moments), most)
		}
		if want := backends * (seconds - 2); all < want*9/10 || all > want*11/10 {
			t.Errorf("got %d checks, want about %d", all, want)
		}
	})
}

// The pause to the nearest moment, whatever the interval.
func TestTogether(t *testing.T) {
	begin := time.Now()
	for _, tt := range []struct{ interval, start, pause, want time.Duration }{
		{time.Second, 0, time.Second, time.Second},
		{time.Second, 0, 1049 * time.Millisecond, time.Second},
		{time.Second, 0, 1051 * time.Millisecond, 1100 * time.Millisecond},
		{time.Second, 3 * time.Millisecond, time.Second, 997 * time.Millisecond},
		{time.Minute, 0, 58_960 * time.Millisecond, 59 * time.Second},
		{100 * time.Millisecond, 0, 94 * time.Millisecond, 90 * time.Millisecond},
		{5, 0, 5, 5},
	} {
		c := New(Config{Mode: HTTPS, Interval: tt.interval}, nil, Observer{})
		c.moment = begin
		if got := c.together(trial{start: begin.Add(tt.start)}, tt.pause); got != tt.want {
			t.Errorf("interval %v, start %v, pause %v: got %v, want %v", tt.interval, tt.start, tt.pause, got, tt.want)
		}
	}
}
