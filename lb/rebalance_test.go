package lb

import (
	"errors"
	"slices"
	"testing"
	"time"
)

func TestLook(t *testing.T) {
	for _, c := range []struct {
		name  string
		inUse int
		busy  []float64
		want  int // loops in use afterwards
		moves []move
	}{
		{"idle", 1, []float64{0.1, 0, 0}, 1, nil},
		{"half of one", 1, []float64{0.6, 0, 0}, 1, nil},
		{"one is busy: one more", 1, []float64{0.8, 0, 0}, 2, []move{{0, 1, 0.5}}},
		{"two are, a third helps the busier", 2, []float64{0.8, 1, 0}, 3, []move{{1, 2, 0.5}}},
		{"one of two is, the other one helps", 2, []float64{1, 0.2, 0}, 2, []move{{0, 1, 0.4}}},
		{"one of all, another one is less so", 3, []float64{0.9, 1, 0.5}, 3, []move{{1, 2, 0.25}}},
		{"all are", 3, []float64{0.9, 1, 0.6}, 3, nil},
		{"what rests has something to do", 1, []float64{0.3, 0, 0.1}, 1, []move{{2, 0, 1}}},
		{"two that rest, to the less busy", 2, []float64{0.7, 0.6, 0.1, 0.1}, 2, []move{{2, 1, 1}, {3, 1, 1}}},
		{"hardly anything", 1, []float64{0.3, 0.001, 0}, 1, nil},
		{"calm, but not yet for long", 3, []float64{0.1, 0.1, 0.1}, 3, nil},
		{"a single processor", 1, []float64{1}, 1, nil},
	} {
		b := balance{inUse: c.inUse}
		if moves := b.decide(c.busy); b.inUse != c.want || !slices.Equal(moves, c.moves) {
			t.Errorf("%s: decide(%v) = %v, %d in use; want %v, %d", c.name, c.busy, moves, b.inUse, c.moves, c.want)
		}
	}
}

// A loop rests only after several calm rounds, one loop at a time, and pairs do not move
// back and forth in each round.
func TestLookPatiently(t *testing.T) {
	b := balance{inUse: 3}
	calm := []float64{0.3, 0.2, 0.1}
	looks := func(n int, busy []float64, inUse int, moves []move) {
		t.Helper()
		for i := range n {
			if got := b.decide(busy); b.inUse != inUse || !slices.Equal(got, moves) {
				t.Fatalf("look %d at %v: %v, %d in use; want %v, %d", i+1, busy, got, b.inUse, moves, inUse)
			}
		}
	}
	looks(calmRounds-1, calm, 3, nil)
	looks(1, []float64{0.7, 0.5, 0.3}, 3, nil) // not calm: the count restarts
	looks(calmRounds-1, calm, 3, nil)
	looks(1, calm, 2, []move{{2, 1, 1}})
	looks(calmRounds-1, []float64{0.3, 0.3, 0}, 2, nil)
	looks(1, []float64{0.3, 0.3, 0}, 1, []move{{1, 0, 1}})
	looks(3*calmRounds, []float64{0.6, 0, 0}, 1, nil)
	looks(3*calmRounds, []float64{0, 0, 0}, 1, nil)

	b = balance{inUse: 2}
	uneven := []float64{1, 0.2}
	looks(1, uneven, 2, []move{{0, 1, 0.4}})
	looks(moveRounds-1, uneven, 2, nil)
	looks(1, uneven, 2, []move{{0, 1, 0.4}})
}

// TestLoopsInUse: one loop does all the work until it is saturated.
func TestLoopsInUse(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{balanceEvery: time.Hour}) // the test makes each round
	if len(r.loops) < 2 {
		t.Skip("one processor, one loop")
	}
	connect := func(n int) {
		for range n {
			r.pairUp(p)
		}
	}
	counts := func() [2]int64 { return [2]int64{r.loops[0].count.Load(), r.loops[1].count.Load()} }
	have := func(what string, want [2]int64) {
		t.Helper()
		eventually(t, what, func() error {
			return errors.Join(equal("pairs", counts(), want), equal("in use", r.value("loops_in_use", ""), float64(1+min(want[1], 1))))
		})
	}
	connect(6)
	have("all at one loop", [2]int64{6, 0})
	b := balance{inUse: 1}
	r.redistribute(&b, []float64{0.9, 0})
	have("half moved", [2]int64{3, 3})

	blocked, release := make(chan struct{}), make(chan struct{})
	r.loops[0].post(func() { close(blocked); <-release }) // so that the other loop accepts
	<-blocked
	connect(2)
	close(release)
	have("the second accepts too", [2]int64{3, 5})

	for range calmRounds {
		r.redistribute(&b, []float64{0.1, 0.1})
	}
	have("all at one loop again", [2]int64{8, 0})
	connect(2)
	have("and so are those that come", [2]int64{10, 0})
}

// A loop that joins while a new process takes over accepts no client, which would be lost
// with this process.
func TestJoinsInHandOver(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{balanceEvery: time.Hour})
	if len(r.loops) < 2 {
		t.Skip("one processor, one loop")
	}
	accept := func(what string, want int) {
		t.Helper()
		n := 0
		for _, l := range r.loops {
			l.call(func() {
				if l.accepting {
					n++
				}
			})
		}
		must(t, equal(what, n, want))
	}
	accept("at first", 1)
	r.setHandingOver(true)
	r.useLoops(2)
	accept("handing over", 0)
	r.setHandingOver(false)
	accept("after it broke off", 2)
	r.useLoops(1)
	accept("at rest again", 1)
	r.pairUp(p)
}

// Streams continue while their pairs move back and forth.
func TestMovePairs(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	if len(r.loops) < 2 {
		t.Skip("one processor, one loop")
	}
	moving := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-moving:
				return
			default:
			}
			for i, l := range r.loops {
				r.movePairs(l, r.loops[(i+1)%len(r.loops)], 0.5)
				l.call(func() {})
			}
		}
	}()
	const size = 8 << 20
	var all []func() error
	for i := range uint64(6) {
		client, server, _ := r.pairUp(p)
		all = append(all,
			func() error { return sendStream(client, 2*i, size) },
			func() error { return expectStream(server, 2*i, size) },
			func() error { return sendStream(server, 2*i+1, size) },
			func() error { return expectStream(client, 2*i+1, size) },
		)
	}
	together(t, all...)
	close(moving)
	<-done
}
