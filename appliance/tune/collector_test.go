package tune

import (
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// A child process has a heap of its own, which is what the collector is for.
const childEnv = "KTHWD_TUNE_CHILD"

func TestMain(m *testing.M) {
	if child := os.Getenv(childEnv); child != "" {
		_ = json.NewEncoder(os.Stdout).Encode(children[child]())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// seen is what a child has seen of itself.
type seen struct {
	Cycles     uint64 // of collection, under the load
	Live, Held uint64 // bytes, under the load
	Calm       uint64 // bytes held after it
	Growth     int    // GOGC under the load
	CalmGrowth int
}

var children = map[string]func() seen{
	"policy": func() seen {
		c := newCollector(gib/4, math.MaxInt64)
		c.every, c.least, c.half = 50*time.Millisecond, 4*mib, 100*time.Millisecond
		return load(c)
	},
	"fixed": func() seen {
		debug.SetGCPercent(idleGrowth)
		return load(nil)
	},
}

// node is small and has pointers, as the objects of Kubernetes.
type node struct {
	next, other *node
	_           [6]uint64
}

var sink *node

const liveNodes = 1 << 18 // 16 MiB

// load makes much garbage beside a heap that lives, and then hardly any.
func load(c *collector) (s seen) {
	all := make([]*node, liveNodes)
	for i := range all {
		all[i] = &node{next: all[i/2], other: all[i/3]}
	}
	runtime.GC()
	if c != nil {
		c.begin()
	}
	first := readAccount()
	makeGarbage(12 * liveNodes)
	now := readAccount()
	s.Cycles, s.Live, s.Held = now.cycles-first.cycles, now.live, now.held
	if c != nil {
		s.Growth = c.growthNow()
		s.calmDown(c)
	}
	runtime.KeepAlive(all)
	return s
}

func makeGarbage(nodes int) {
	for range nodes {
		sink = &node{next: sink}
		sink.next = nil
	}
}

// calmDown runs the rounds that Follow would, until the heap is tight again. The parent bounds
// the time.
func (s *seen) calmDown(c *collector) {
	for {
		makeGarbage(100)
		c.check()
		now := readAccount()
		if c.growthNow() == idleGrowth && !excessive(now.held, now.live, now.live*idleGrowth/100, c.least) {
			s.Calm, s.CalmGrowth = now.held, c.growthNow()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (c *collector) growthNow() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.percent
}

func runChild(t *testing.T, name string) (s seen) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+name, "GOGC=", "GOMEMLIMIT=")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, stderr.String())
	}
	return s
}

// TestCollector compares a heap under the policy with one that is always collected as while
// idle: far fewer collections for the same garbage, memory within its bound, and what the load
// took is given back.
func TestCollector(t *testing.T) {
	fixed, policy := runChild(t, "fixed"), runChild(t, "policy")
	t.Logf("fixed %+v\npolicy %+v", fixed, policy)
	if policy.Cycles == 0 || policy.Cycles*2 > fixed.Cycles {
		t.Errorf("%d collections, and %d of a heap that is always tight; want less than half", policy.Cycles, fixed.Cycles)
	}
	if policy.Growth <= idleGrowth || policy.Held > policy.Live*3 {
		t.Errorf("under load GOGC is %d and %d bytes are held of which %d live", policy.Growth, policy.Held, policy.Live)
	}
	if policy.CalmGrowth != idleGrowth || policy.Calm > policy.Live*2 {
		t.Errorf("after the load GOGC is %d and %d bytes are held of which %d live", policy.CalmGrowth, policy.Calm, policy.Live)
	}
}
