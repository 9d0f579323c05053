package lb

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

var allBalances = []string{LeastConnections, RoundRobin, SourceHash, FirstAlive}

// poolOf returns a server with backends of these tiers, named b0, b1 and so on.
func poolOf(balance string, tiers ...int32) (*Server, []*Backend) {
	s := &Server{begun: time.Now()}
	cfg := Default()
	s.set.Store(settingsOf(cfg))
	var all []*Backend
	for i, tier := range tiers {
		b := &Backend{s: s, name: fmt.Sprintf("b%d", i)}
		b.tier.Store(tier)
		b.weight.Store(normalWeight)
		all = append(all, b)
	}
	s.pool.Store(newPool(balance, all))
	return s, all
}

var someClient = netip.MustParseAddr("10.1.2.3")

func TestChooseTier(t *testing.T) {
	const ready, hopeful, doubted, leaving, bad = tierReady, tierHopeful, tierDoubted, tierLeaving, tierBad
	for _, tt := range []struct {
		name  string
		tiers []int32
		tried []int
		want  []int // any of them; nil for no backend
	}{
		{"none", nil, nil, nil},
		{"one", []int32{ready}, nil, []int{0}},
		{"one that was tried", []int32{ready}, []int{0}, nil},
		{"ready before all", []int32{bad, doubted, hopeful, ready}, nil, []int{3}},
		{"hopeful before doubted", []int32{bad, doubted, hopeful}, nil, []int{2}},
		{"doubted before bad", []int32{bad, doubted}, nil, []int{1}},
		{"doubted before leaving", []int32{leaving, doubted}, nil, []int{1}},
		{"leaving before bad", []int32{bad, leaving}, nil, []int{1}},
		{"bad before none", []int32{bad, bad}, nil, []int{0, 1}},
		{"the next tier when the best was tried", []int32{ready, bad, doubted}, []int{0}, []int{2}},
		{"the last one", []int32{ready, bad, doubted}, []int{0, 2}, []int{1}},
		{"all were tried", []int32{ready, bad, doubted}, []int{0, 1, 2}, nil},
		{"among equals", []int32{ready, ready, bad, ready}, []int{1}, []int{0, 3}},
	} {
		for _, balance := range allBalances {
			t.Run(tt.name+"/"+balance, func(t *testing.T) {
				s, all := poolOf(balance, tt.tiers...)
				var tried []*Backend
				for _, i := range tt.tried {
					tried = append(tried, all[i])
				}
				for range 10 {
					got := slices.Index(all, s.choose(someClient, tried))
					if len(tt.want) == 0 && got != -1 || len(tt.want) > 0 && !slices.Contains(tt.want, got) {
						t.Fatalf("got %d, want one of %v", got, tt.want)
					}
				}
			})
		}
	}
}

// The attempt after one that is slow or has failed is to the other family, if a backend of the
// best tier has it. The order of FirstAlive is the configured one.
func TestChooseOtherFamily(t *testing.T) {
	families := []string{"[fd00::1]:1", "[fd00::2]:1", "[fd00::3]:1", "10.0.0.1:1", "10.0.0.2:1"}
	for _, tt := range []struct {
		name   string
		worse  []int // not of the best tier
		tried  []int
		want   []int // any of them
		inTurn int   // the one of FirstAlive
	}{
		{"after IPv6", nil, []int{0}, []int{3, 4}, 1},
		{"after IPv4", nil, []int{4}, []int{0, 1, 2}, 0},
		{"after one of each", nil, []int{0, 3}, []int{1, 2, 4}, 1},
		{"after two of IPv6", nil, []int{0, 2}, []int{3, 4}, 1},
		{"none of the other family is left", nil, []int{0, 3, 4}, []int{1, 2}, 1},
		{"none of the other family is as good", []int{3, 4}, []int{0}, []int{1, 2}, 1},
		{"one of the other family is as good", []int{3}, []int{1}, []int{4}, 0},
	} {
		for _, balance := range allBalances {
			s, all := poolOf(balance, make([]int32, len(families))...)
			for i, at := range families {
				all[i].at = netip.MustParseAddrPort(at)
			}
			for _, i := range tt.worse {
				all[i].tier.Store(tierDoubted)
			}
			var tried []*Backend
			for _, i := range tt.tried {
				tried = append(tried, all[i])
			}
			want := tt.want
			if balance == FirstAlive {
				want = []int{tt.inTurn}
			}
			for range 10 {
				if got := slices.Index(all, s.choose(someClient, tried)); !slices.Contains(want, got) {
					t.Errorf("%s, %s: got %d, want one of %v", tt.name, balance, got, want)
				}
			}
		}
	}
}

// choose never returns a worse tier while a better one is untried, nor nil while a
// backend is untried.
func TestChooseInvariant(t *testing.T) {
	r := rand.New(stream(1))
	for range 20_000 {
		tiers := make([]int32, r.IntN(6))
		for i := range tiers {
			tiers[i] = r.Int32N(tierBad + 1)
		}
		s, all := poolOf(allBalances[r.IntN(len(allBalances))], tiers...)
		var tried []*Backend
		best := int32(-1)
		for _, b := range all {
			b.active.Store(r.Int64N(5))
			if r.IntN(5) == 0 {
				b.readyAt.Store(1 + r.Int64N(1000))
			}
			if r.IntN(3) == 0 {
				tried = append(tried, b)
			} else if tier := b.tier.Load(); best < 0 || tier < best {
				best = tier
			}
		}
		got := s.choose(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.Uint32())}), tried)
		switch {
		case got == nil:
			if best >= 0 {
				t.Fatalf("no backend of %v after %d tried", tiers, len(tried))
			}
		case slices.Contains(tried, got) || got.tier.Load() != best:
			t.Fatalf("%s with tier %d, want tier %d; of %v", got.name, got.tier.Load(), best, tiers)
		}
	}
}

// choose returns a backend even when tiers change meanwhile.
func TestChooseWhileTiersChange(t *testing.T) {
	for _, balance := range allBalances {
		s, all := poolOf(balance, 0, 0, 0)
		stop := make(chan bool)
		var wg sync.WaitGroup
		for _, b := range all {
			wg.Go(func() {
				for tier := int32(0); ; tier++ {
					select {
					case <-stop:
						return
					default:
						b.tier.Store(tier % (tierBad + 1))
					}
				}
			})
		}
		for range 20_000 {
			if s.choose(someClient, all[:1]) == nil {
				t.Fatal("no backend")
			}
		}
		close(stop)
		wg.Wait()
	}
}

func TestLeastConnections(t *testing.T) {
	s, all := poolOf(LeastConnections, 0, 0, 0)
	all[0].active.Store(3)
	all[1].active.Store(1)
	all[2].connecting.Store(2)
	must(t, equal("the one with one", s.choose(someClient, nil), all[1]))
	all[1].active.Store(100)
	must(t, equal("those on their way count", s.choose(someClient, nil), all[2]))
	for range 300 {
		s.choose(someClient, nil).active.Add(1)
	}
	for _, b := range all {
		if n := b.active.Load() + b.connecting.Load(); n < 135 || n > 137 {
			t.Errorf("%s has %d, want (3+100+2+300)/3", b.name, n)
		}
	}
}

func TestSlowStart(t *testing.T) {
	s, all := poolOf(LeastConnections, 0, 0)
	s.begun = time.Now().Add(-1000 * time.Hour)
	s.set.Load().slowStart = int64(10 * time.Hour) // what passes meanwhile is nothing
	for _, tt := range []struct {
		passed time.Duration
		share  float64
	}{{0, 0.1}, {30 * time.Minute, 0.1}, {5 * time.Hour, 0.5}, {9 * time.Hour, 0.9}, {10 * time.Hour, 1}} {
		for _, b := range all {
			b.active.Store(0)
		}
		now := s.clock()
		all[1].readyAt.Store(now - int64(tt.passed))
		if got := all[1].share(now); got < tt.share-0.01 || got > tt.share+0.01 {
			t.Errorf("after %v: share %v, want %v", tt.passed, got, tt.share)
		}
		for range 1000 {
			s.choose(someClient, nil).active.Add(1)
		}
		want := 1000 * tt.share / (1 + tt.share)
		if got := float64(all[1].active.Load()); got < want-20 || got > want+20 {
			t.Errorf("after %v: %v of 1000 connections, want %v", tt.passed, got, want)
		}
	}
	must(t, equal("it is over", all[1].readyAt.Load(), 0))
}

func TestRoundRobin(t *testing.T) {
	s, all := poolOf(RoundRobin, 0, 0, 0, tierBad)
	got := map[*Backend]int{}
	for range 400 {
		got[s.choose(someClient, nil)]++
	}
	must(t, equal("the bad one", got[all[3]], 0), equal("all", got[all[0]]+got[all[1]]+got[all[2]], 400))
	for _, b := range all[:3] {
		if got[b] < 100 {
			t.Errorf("%s got %d of 400", b.name, got[b])
		}
	}
}

// When a backend leaves, only its own clients move, and they return with it.
func TestSourceHash(t *testing.T) {
	s, all := poolOf(SourceHash, 0, 0, 0)
	before, count := map[netip.Addr]*Backend{}, map[*Backend]int{}
	for i := range 3000 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		before[a] = s.choose(a, nil)
		count[before[a]]++
		must(t, equal("the same again", s.choose(a, nil), before[a]))
	}
	for _, b := range all {
		if count[b] < 850 || count[b] > 1150 {
			t.Errorf("%s has %d of 3000 clients", b.name, count[b])
		}
	}
	all[1].tier.Store(tierBad)
	for a, b := range before {
		if now := s.choose(a, nil); b != all[1] && now != b || b == all[1] && now == b {
			t.Fatalf("%v moved from %s to %s", a, b.name, now.name)
		}
	}
	s.pool.Store(newPool(SourceHash, []*Backend{all[2], all[1], all[0]}))
	all[1].tier.Store(tierReady)
	for a, b := range before {
		must(t, equal("whatever the order", s.choose(a, nil), b))
	}
}

func TestFirstAlive(t *testing.T) {
	s, all := poolOf(FirstAlive, tierDoubted, tierReady, tierReady)
	must(t, equal("first", s.choose(someClient, nil), all[1]))
	all[0].tier.Store(tierReady)
	must(t, equal("first", s.choose(someClient, nil), all[0]))
}

// Each algorithm but first gives a backend of weight 3 three times what one of weight 1
// gets, and one of weight 0 nothing, even when it is the only one that is ready.
func TestWeight(t *testing.T) {
	for _, balance := range []string{LeastConnections, RoundRobin, SourceHash} {
		s, all := poolOf(balance, tierHopeful, tierHopeful, tierReady)
		all[0].weight.Store(3)
		all[2].weight.Store(0)
		s.pool.Store(newPool(balance, all))
		for i := range 4000 {
			s.choose(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), nil).active.Add(1)
		}
		if n := all[0].active.Load(); n < 2900 || n > 3100 || all[2].active.Load() != 0 {
			t.Errorf("%s: got %d, %d and %d connections, want about 3000, 1000 and 0", balance, n, all[1].active.Load(), all[2].active.Load())
		}
	}
}

// A backup is used when no other one is ready, and before any that is not.
func TestClasses(t *testing.T) {
	for _, balance := range allBalances {
		s, all := poolOf(balance, tierReady, tierReady, tierReady)
		all[0].class.Store(classLast)
		all[1].class.Store(classBackup)
		next := func(want int, why string) {
			t.Helper()
			if got := slices.Index(all, s.choose(someClient, nil)); got != want {
				t.Errorf("%s: %s: got %d, want %d", balance, why, got, want)
			}
		}
		next(2, "all are ready")
		all[2].tier.Store(tierHopeful)
		next(1, "a backup is ready")
		all[1].tier.Store(tierDoubted)
		next(0, "the last resort is ready")
		all[0].tier.Store(tierHopeful)
		next(2, "none is ready")
	}
}
