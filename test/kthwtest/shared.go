package kthwtest

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Shared is one controller for several tests of a package, side by side or one after the other. It
// is for tests that leave it as they found it, but for objects with names of their own. A start
// takes two seconds of a processor: more than most of what such a test asks.
//
//	var shared = kthwtest.Shared{Tests: 3}
//
//	func TestMain(m *testing.M) { os.Exit(shared.Run(m)) }
//	func TestOne(t *testing.T)  { c := shared.Use(t, kthwtest.Options{}); … }
type Shared struct {
	Tests int // that use it: with the end of the last one it stops

	mu    sync.Mutex
	began bool
	c     *Controller
	dir   string
	ended int
}

// Run is m.Run. It stops a controller that not all of its tests have used, as with -run.
func (s *Shared) Run(m *testing.M) (code int) {
	code = m.Run()
	if err := s.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "the controller that tests share:", err)
		code = max(code, 1)
	}
	return code
}

// Use returns the controller, which the first test starts with its options. A test that fails
// shows its log.
func (s *Shared) Use(t *testing.T, o Options) *Controller {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.began {
		s.began = true
		s.begin(t, o)
	}
	if s.c == nil {
		t.Fatal("the controller that tests share has not become ready in another test")
	}
	if s.c.Exited() {
		t.Fatalf("the controller that tests share has ended in another test:\n%s", s.c.Log.Tail(60))
	}
	t.Cleanup(func() { s.endOf(t) })
	return s.c
}

// begin needs the lock.
func (s *Shared) begin(t *testing.T, o Options) {
	t.Helper()
	dir, err := os.MkdirTemp("", "kthwd-shared")
	if err != nil {
		t.Fatal(err)
	}
	o.Dir = filepath.Join(dir, "data")
	c, ready := run(t, o), false
	t.Cleanup(func() {
		if !ready {
			c.cleanup(t)
			os.RemoveAll(dir)
		}
	})
	c.WaitReady(t)
	s.c, s.dir, ready = c, dir, true
}

// endOf is called at the end of each test.
func (s *Shared) endOf(t *testing.T) {
	s.mu.Lock()
	c := s.c
	s.ended++
	last := s.ended >= s.Tests
	s.mu.Unlock()
	if c == nil || c.Exited() {
		t.Error("the controller that tests share has ended")
	}
	if c != nil && t.Failed() {
		t.Logf("log of the kthwd that tests share:\n%s", c.Log.Tail(200))
	}
	if last {
		if err := s.stop(); err != nil {
			t.Error("the controller that tests share: ", err)
		}
	}
}

func (s *Shared) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return nil
	}
	defer os.RemoveAll(s.dir)
	err := s.c.end()
	s.c = nil
	return err
}
