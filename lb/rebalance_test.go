package lb

import (
	"testing"
)

func TestMove(t *testing.T) {
	for _, c := range []struct {
		name        string
		shares      []float64
		pairs       []int64
		from, to, n int
	}{
		{"idle", []float64{0.1, 0}, []int64{1000, 0}, 0, 0, 0},
		{"one is busy", []float64{0.95, 0.1}, []int64{1000, 10}, 0, 1, 495},
		{"the other one is busy", []float64{0.2, 1, 0.1}, []int64{10, 100, 20}, 1, 2, 40},
		{"both are", []float64{0.95, 0.6}, []int64{1000, 10}, 0, 0, 0},
		{"one connection makes it busy", []float64{1, 0}, []int64{1, 0}, 0, 0, 0},
		{"with fewer connections", []float64{1, 0}, []int64{10, 100}, 0, 0, 0},
	} {
		if from, to, n := move(c.shares, c.pairs); from != c.from || to != c.to || n != c.n {
			t.Errorf("%s: move(%v, %v) = %d, %d, %d; want %d, %d, %d", c.name, c.shares, c.pairs, from, to, n, c.from, c.to, c.n)
		}
	}
}

// Streams go on while their pairs are moved to and fro.
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
				r.movePairs(l, r.loops[(i+1)%len(r.loops)], 3)
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
