package members

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/appliance/status"
	"kthwd/test/harness"
)

// soaking is a cluster that is disturbed at random.
type soaking struct {
	*cluster
	random *rand.Rand
	wrote  int // keys 0 to wrote-1 were acknowledged
	moves  int
}

// TestSoak cuts directions and pairs, kills, and moves controllers to other addresses in random
// order for KTHWD_SOAK. After each step all take part again, and each acknowledged write is
// there. KTHWD_SOAK_SEED repeats an order.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("KTHWD_SOAK"))
	if err != nil {
		t.Skip("KTHWD_SOAK is no duration: run make soak")
	}
	t.Setenv("KTHWD_E2E", "1")
	if !requireNetwork(t) {
		return
	}
	seed, err := strconv.ParseUint(os.Getenv("KTHWD_SOAK_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("KTHWD_SOAK_SEED=%d", seed)
	s := &soaking{cluster: newCluster(t, 3), random: rand.New(rand.NewPCG(seed, 0))}
	start(t, s.machines...)
	s.heard(t)
	steps := []func(*testing.T, *machine, *machine, *machine){s.oneDirection, s.pair, s.alone, s.kill, s.readdressed}
	for n, end := 0, time.Now().Add(length); time.Now().Before(end); n++ {
		order := s.random.Perm(3)
		a, b, c := s.machines[order[0]], s.machines[order[1]], s.machines[order[2]]
		s.put(t, a)
		steps[s.random.IntN(len(steps))](t, a, b, c)
		s.heard(t)
		s.check(t, c)
		t.Logf("%d steps, %d writes, %d moves", n+1, s.wrote, s.moves)
	}
}

// oneDirection: a does not hear b and c, which hear it.
func (s *soaking) oneDirection(t *testing.T, a, b, c *machine) {
	t.Logf("%s and %s cannot connect to %s", b.name, c.name, a.name)
	shut(t, a, b, c)
	defer open(t, a, b, c)
	s.whole(t)
	s.put(t, b)
}

// pair: a and b do not hear each other; c hears both.
func (s *soaking) pair(t *testing.T, a, b, c *machine) {
	t.Logf("%s and %s cannot connect to each other", a.name, b.name)
	shut(t, a, b)
	shut(t, b, a)
	defer open(t, a, b)
	defer open(t, b, a)
	s.put(t, c)
}

// alone: nobody hears a, and nobody is told to give the quorum up.
func (s *soaking) alone(t *testing.T, a, b, c *machine) {
	t.Logf("%s is cut off", a.name)
	shut(t, a, b, c)
	defer open(t, a, b, c)
	for _, m := range []*machine{b, c} {
		shut(t, m, a)
		defer open(t, m, a)
	}
	s.put(t, b)
	a.says(t, "no advice to recover", func(r status.Report) bool { return !r.Ready && !strings.Contains(digest(r), "recover") })
}

func (s *soaking) kill(t *testing.T, a, b, _ *machine) {
	t.Logf("kill -9 of %s", a.name)
	a.process.Signal(t, syscall.SIGKILL)
	<-a.process.Exited()
	s.put(t, b)
	start(t, a)
}

// readdressed: a moves, by the command or by its start.
func (s *soaking) readdressed(t *testing.T, a, b, _ *machine) {
	s.moves++
	to := newAddress(s.moves % 100)
	t.Logf("%s moves to %s", a.name, to)
	a.move(t, to)
	s.put(t, b)
	args := []string{to}
	if s.random.IntN(2) == 0 {
		args = append(args, "at-start")
	}
	if out, err := a.readdress(args...); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	a.address = to
	start(t, a)
	b.knownAt(t, a.name, to)
}

// put writes one more key through a controller.
func (s *soaking) put(t *testing.T, m *machine) {
	t.Helper()
	client := m.etcd(t)
	defer client.Close()
	harness.WaitFor(t, "a write through "+m.name, soon, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := client.Put(ctx, fmt.Sprintf("/soak/%d", s.wrote), m.name)
		return err
	})
	s.wrote++
}

// check reads all keys through a controller.
func (s *soaking) check(t *testing.T, m *machine) {
	t.Helper()
	client := m.etcd(t)
	defer client.Close()
	for n := range s.wrote {
		answer, err := client.Get(t.Context(), fmt.Sprintf("/soak/%d", n))
		if err != nil || len(answer.Kvs) != 1 {
			t.Fatalf("write %d was acknowledged: got %v (%v)", n, answer, err)
		}
	}
}
