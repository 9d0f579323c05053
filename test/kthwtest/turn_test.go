package kthwtest

import (
	"os"
	"path/filepath"
	"strings"
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
			release, err := r.wait(n, n)
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
		all := take(one, 5)
		for n, rank := range map[int]int{1: Alone + 1, 4: 4} { // a long one, and a large one
			done.Go(func() {
				release, err := one.wait(n, rank)
				if err != nil {
					t.Error(err)
					return
				}
				order <- n
				release()
			})
		}
		synctest.Wait() // both have said their wish
		all()
		if first, second := <-order, <-order; first != 1 || second != 4 {
			t.Errorf("got %d before %d, want the long one first", first, second)
		}
	})
	single := newTurns("", 1)
	release, err := single.wait(3, 3)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

// A parallel test of the packages that take turns takes one, or its subtests do: a test that
// waits for nobody makes all others late.
func TestAllTakeTurns(t *testing.T) {
	for _, dir := range []string{"../fault", "../incident"} {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", dir, files, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, function := range strings.Split(string(text), "\nfunc ")[1:] {
				name, body, _ := strings.Cut(function, "(")
				if strings.HasPrefix(name, "Test") && strings.Contains(body, "\n\tt.Parallel()\n") && !strings.Contains(body, "kthwtest.Turn(t, ") {
					t.Errorf("%s: %s calls t.Parallel in place of kthwtest.Turn", file, name)
				}
			}
		}
	}
}
