package kthwtest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// atOncePerProcessor is the number of controllers that run at once for each processor. A
// start computes for two seconds; then a controller, and its test, wait most of the time. No
// other package runs beside the end-to-end tests.
func atOncePerProcessor() int {
	if os.Getenv("KTHWD_E2E") != "" {
		return 6
	}
	return 4
}

// Alone is a turn with all of the room: nothing else of the go test runs then.
const Alone = 1000

// Turn makes the test parallel, and returns when the machine has room for its controllers.
// It keeps the room until the test has ended. All packages of one go test share the room;
// of the tests of a package that wait, the one with the most controllers goes first, so that
// the longest ones are not left for the end, and small ones fill what is left.
//
// A test whose parallel subtests take turns of their own calls t.Parallel instead: it would
// keep the room that they wait for. The package calls TakeTurns in TestMain.
func Turn(t *testing.T, controllers int) {
	t.Helper()
	turn(t, controllers, controllers)
}

// LongTurn is Turn for a test that takes minutes with few controllers: it goes before all others.
func LongTurn(t *testing.T, controllers int) {
	t.Helper()
	turn(t, controllers, Alone+controllers)
}

func turn(t *testing.T, controllers, rank int) {
	t.Helper()
	t.Parallel()
	release, err := theTurns().wait(controllers, rank)
	if err != nil {
		t.Fatalf("turn for %d controllers: %v", controllers, err)
	}
	t.Cleanup(release) // after the end of the controllers, whose clean-up is registered later
}

// Together lets all parallel tests of a package wait for their turns at the same time.
const Together = 1000

// TakeTurns lets n parallel tests of a package run, or wait for their turns, at the same time,
// whatever the number of processors, unless -parallel says another number. TestMain calls it
// before m.Run. In all but one package of a go test n is small: a test of many controllers
// finds no room beside many tests of other packages.
func TakeTurns(n int) {
	const parallel = "test.parallel"
	given := false
	flag.Parse()
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == parallel })
	if given {
		return
	}
	if err := flag.Set(parallel, strconv.Itoa(n)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var theTurns = sync.OnceValue(func() *turns {
	return newTurns(turnsDir(os.Args[0]), atOncePerProcessor()*runtime.NumCPU())
})

// turnsDir is a directory that all test binaries of one go test share, given the path of this
// one: go test puts them below a directory that it removes at its end. It is "" for a binary
// that was not started by go test.
func turnsDir(binary string) string {
	work := filepath.Dir(filepath.Dir(binary))
	if !strings.HasPrefix(filepath.Base(work), "go-build") {
		return ""
	}
	return filepath.Join(work, "kthwd-turns")
}

// turns is room for a number of controllers, each place a file that is locked while it is
// taken. A test binary that is killed leaves no lock.
type turns struct {
	err    error
	master *os.File
	places []*os.File

	mu      sync.Mutex
	mine    []bool // the places taken by this process
	waiting []int  // the ranks of the wishes, the highest first
}

func newTurns(dir string, n int) *turns {
	r := &turns{mine: make([]bool, n)}
	if dir == "" { // nobody to share with
		if dir, r.err = os.MkdirTemp("", "kthwd-turns"); r.err != nil {
			return r
		}
		defer os.RemoveAll(dir)
	}
	if r.err = os.MkdirAll(dir, 0o700); r.err != nil {
		return r
	}
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if r.err == nil {
			r.err = err
		}
		return f
	}
	r.master = open("master")
	for i := range n {
		r.places = append(r.places, open(fmt.Sprint(i)))
	}
	return r
}

// wait blocks until it has n places, or all if there are fewer, and no wish of a higher rank waits. It
// returns what gives them back.
func (r *turns) wait(n, rank int) (release func(), err error) {
	if r.err != nil {
		return nil, r.err
	}
	n = min(n, len(r.places))
	r.mu.Lock()
	r.waiting = append(r.waiting, rank)
	slices.SortFunc(r.waiting, func(a, b int) int { return b - a })
	r.mu.Unlock()
	for {
		// Another process tells nobody that it gives a place back. Before the first time, those that
		// begin at the same moment all say their wish.
		time.Sleep(100 * time.Millisecond)
		got, err := r.try(n, rank)
		if err != nil || got != nil {
			return func() { r.release(got) }, err
		}
	}
}

// try takes n places, or none: not if a wish of a higher rank waits.
func (r *turns) try(n, rank int) (got []int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := syscall.Flock(int(r.master.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	defer func() { _ = syscall.Flock(int(r.master.Fd()), syscall.LOCK_UN) }()
	free := r.lock()
	if len(free) < n || r.waiting[0] > rank {
		r.unlock(free)
		return nil, nil
	}
	r.unlock(free[n:])
	r.waiting = r.waiting[1:]
	for _, i := range free[:n] {
		r.mine[i] = true
	}
	return free[:n], nil
}

// lock locks all free places.
func (r *turns) lock() (free []int) {
	for i, f := range r.places {
		if !r.mine[i] && syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			free = append(free, i)
		}
	}
	return free
}

func (r *turns) unlock(places []int) {
	for _, i := range places {
		_ = syscall.Flock(int(r.places[i].Fd()), syscall.LOCK_UN)
	}
}

func (r *turns) release(places []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range places {
		r.mine[i] = false
	}
	r.unlock(places)
}
