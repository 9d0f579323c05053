package tune

import (
	"math"
	"testing"
	"time"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// world is a process as the policy sees it.
type world struct {
	live   uint64
	makes  float64 // bytes of garbage a second
	works  float64 // cores, without collection
	marks  float64 // bytes that a CPU second of collection marks
	usable uint64
}

// simulated is a process that runs under the policy.
type simulated struct {
	pace
	now account
}

func newSimulated(w world) *simulated {
	now := account{at: time.Unix(0, 0), live: w.live}
	return &simulated{newPace(now, halfTime), now}
}

// run lets it run for a while, and returns the room at the end and the share of the CPU time that
// collection took in the second half.
func (s *simulated) run(w world, long time.Duration) (room uint64, share float64) {
	end := s.now.at.Add(long)
	var half account
	since := uint64(0) // garbage since the last collection
	for step := 10 * time.Millisecond; s.now.at.Before(end); {
		s.now.at = s.now.at.Add(step)
		made := uint64(w.makes * step.Seconds())
		s.now.allocated += made
		since += made
		s.now.working += w.works * step.Seconds()
		room = s.room(w.usable)
		if since >= room {
			since = 0
			s.now.cycles++
			s.now.live = w.live
			s.now.collecting += float64(w.live) / w.marks
			s.observe(s.now)
		} else if s.now.at.Sub(s.last.at) >= steerEvery {
			s.observe(s.now)
		}
		if half.at.IsZero() && end.Sub(s.now.at) < long/2 {
			half = s.now
		}
	}
	collecting, working := s.now.collecting-half.collecting, s.now.working-half.working
	return s.room(w.usable), collecting / (collecting + working)
}

// TestPolicy runs the policy at each size.
func TestPolicy(t *testing.T) {
	const marks = 600 * mib
	for _, tt := range []struct {
		name   string
		world  world
		least  float64 // of the live heap
		most   float64
		within bool // collection is within its share
	}{
		{"empty, idle", world{100 * mib, 1 * mib, 0.017, marks, 8 * gib}, 0.3, 0.3, false},
		{"empty, load", world{150 * mib, 150 * mib, 1.6, marks, 8 * gib}, 0.5, 1.71, true},
		{"large, idle", world{700 * mib, 5 * mib, 0.1, marks, 8 * gib}, 0.3, 0.6, false},
		{"large, heartbeats", world{700 * mib, 15 * mib, 0.29, marks, 16 * gib}, 0.6, 1, true},
		{"large, a load of its own", world{700 * mib, 300 * mib, 1, marks, 16 * gib}, 1, 1, false},
		{"large, a small machine", world{700 * mib, 300 * mib, 1, marks, 2 * gib}, 0.3, 0.3, false},
		{"work without garbage", world{700 * mib, 1 * mib, 2, marks, 8 * gib}, 0.3, 0.3, true},
		{"memory unknown", world{150 * mib, 250 * mib, 1.6, marks, 0}, 0.3, 0.3, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			room, part := newSimulated(tt.world).run(tt.world, 5*time.Minute)
			got := float64(room) / float64(tt.world.live)
			t.Logf("room %.2f of the live heap, collection %.1f %%", got, part*100)
			if got < tt.least-0.01 || got > tt.most+0.01 {
				t.Errorf("room is %.2f of the live heap; want %.2f to %.2f", got, tt.least, tt.most)
			}
			if tt.within && part > share*1.15 {
				t.Errorf("collection takes %.1f %%; want %.0f %%", part*100, share*100)
			}
		})
	}
}

// TestPolicySettles holds that the room of a load is gone within 2 minutes of its end.
func TestPolicySettles(t *testing.T) {
	for name, live := range map[string]uint64{"small": 150 * mib, "large": 1500 * mib} {
		idle := world{live, 1 * mib, 0.017, 600 * mib, 16 * gib}
		load := idle
		load.makes, load.works = 250*mib, 1.6
		s := newSimulated(idle)
		before, _ := s.run(idle, 3*time.Minute)
		during, _ := s.run(load, time.Minute)
		after, _ := s.run(idle, 90*time.Second)
		if during <= before || after > before+before/10 {
			t.Errorf("%s: room %d MiB before, %d under load, %d after", name, before>>20, during>>20, after>>20)
		}
	}
}

// TestPolicyGrowsLinearly holds that no size has a larger part of garbage than a smaller one.
func TestPolicyGrowsLinearly(t *testing.T) {
	last := math.Inf(1)
	for _, size := range []uint64{1, 3, 10, 30, 100} {
		w := world{size * 100 * mib, float64(size) * 2 * mib, float64(size) * 0.04, 600 * mib, 256 * gib}
		room, _ := newSimulated(w).run(w, 10*time.Minute)
		part := float64(room) / float64(w.live)
		if part > max(last, 1)+0.01 {
			t.Errorf("%d: room is %.2f of the live heap, after %.2f", size, part, last)
		}
		last = part
	}
}

func TestMostRoom(t *testing.T) {
	for name, c := range map[string]struct{ live, usable, want uint64 }{
		"large machine":        {128 * mib, 64 * gib, 256 * mib},
		"large heap":           {1 * gib, 64 * gib, 1 * gib},
		"half of what is left": {2 * gib, 8 * gib, 1 * gib},
		"small machine":        {100 * mib, 2 * gib, 128 * mib},
		"too small a machine":  {1 * gib, 2 * gib, 0},
		"unknown":              {128 * mib, 0, 0},
	} {
		if got := mostRoom(c.live, c.usable); got != c.want {
			t.Errorf("%s: got %d MiB, want %d", name, got>>20, c.want>>20)
		}
	}
	for name, c := range map[string]struct {
		live, room uint64
		want       int
	}{"none": {0, 0, idleGrowth}, "as much": {mib, mib, 100}, "tight": {100 * mib, 1, idleGrowth}, "bounded": {mib, gib, 1000}} {
		if got := growth(c.live, c.room); got != c.want {
			t.Errorf("%s: GOGC %d, want %d", name, got, c.want)
		}
	}
}
