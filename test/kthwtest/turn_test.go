package kthwtest

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestTurnsDir(t *testing.T) {
	for binary, want := range map[string]string{
		"/tmp/go-build123/b001/fault.test": "/tmp/go-build123/kthwd-turns",
		"/home/me/fault.test":              "",
		"./fault.test":                     "",
	} {
		if got := turnsDir(binary); got != want {
			t.Errorf("%s: got %q, want %q", binary, got, want)
		}
	}
}

// Two processes share the places; the largest wish goes first, and a wish beyond all places
// waits for all.
func TestTurns(t *testing.T) {
	dir := t.TempDir()
	one, other := newTurns(dir, 5), newTurns(dir, 5)
	synctest.Test(t, func(t *testing.T) {
		take := func(r *turns, n int) func() {
			t.Helper()
			release, err := r.wait(n)
			if err != nil {
				t.Fatal(err)
			}
			return release
		}
		three := take(one, 3)
		two := take(other, 2)
		order := make(chan int, 3)
		var done sync.WaitGroup
		defer done.Wait()
		for _, n := range []int{1, 9, 2} {
			done.Go(func() {
				release := take(one, n)
				order <- n
				time.Sleep(time.Second)
				release()
			})
		}
		synctest.Wait()
		if len(order) > 0 {
			t.Error("a turn before there is room")
		}
		three()
		time.Sleep(time.Second)
		if len(order) > 0 {
			t.Error("a small wish goes before 9, which means all 5 and does not fit yet")
		}
		two()
		for _, want := range []int{9, 2, 1} {
			if got := <-order; got != want {
				t.Errorf("got %d, want %d", got, want)
			}
		}
	})
	single := newTurns("", 1)
	release, err := single.wait(3)
	if err != nil {
		t.Fatal(err)
	}
	release()
}
