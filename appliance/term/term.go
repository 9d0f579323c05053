// Package term ends one run of a program, a term, when its code wants to end the
// process.
//
// kube-controller-manager and kube-scheduler are written as processes of their own: their
// code calls exit, or panics, when it cannot continue. In a process that they share with
// etcd and the API server, only their term must end:
//
//	t := term.New(ctx, "kube-scheduler")
//	defer t.Close()
//	result := t.Go(func(ctx context.Context) error { … })
//
// Go's function and every goroutine that it starts belong to t. The places where upstream
// would end the process ask Current for the term of their goroutine, and call its Leave:
// the context of the term ends, the goroutine ends, and Exited returns why.
//
// A goroutine that leaves runs its deferred functions, as a panic would make it. They
// release its locks and report its end to the goroutines that wait for it, so that the
// others of the term can stop. If it were parked instead, each exit would leave a term that
// never stops. What the deferred functions still do is harmless: the hook of OnExit has
// closed the API server to the term before they run.
package term

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// The reasons of an Exit.
const (
	ReasonExit  = "exit"  // the program ended itself in order, as with klog.FlushAndExit
	ReasonFatal = "fatal" // a fatal log line
	ReasonPanic = "panic" // a panic that the program has not handled
)

// Exit is the error of a term that a goroutine has left.
type Exit struct {
	Reason string // one of the reasons above
	Where  string // file and line of the call
	Cause  string // what the program said about it; may be empty
	Stack  string // of a panic that upstream has not logged; otherwise empty
}

// Error implements error. The cause comes first, because a display may cut the rest.
func (e *Exit) Error() string {
	did := map[string]string{ReasonExit: "ended itself", ReasonFatal: "ended itself", ReasonPanic: "panicked"}[e.Reason]
	if e.Cause == "" {
		return fmt.Sprintf("%s, at %s", did, path.Base(e.Where))
	}
	return fmt.Sprintf("%s: %s (at %s)", did, e.Cause, path.Base(e.Where))
}

// ErrStillRunning is part of the error of a program that has returned although some of its
// code still runs.
var ErrStillRunning = errors.New("some of its code still runs")

// Term is one run of a program. Make one with New. Its methods may be called from any
// goroutine.
type Term struct {
	component string
	number    uint64
	ctx       context.Context
	end       context.CancelFunc

	mu     sync.Mutex
	onExit func()
	exit   *Exit // the first one
}

// terms holds the open terms by number.
var (
	terms  sync.Map
	newest atomic.Uint64
)

// New makes a term of component whose context ends with ctx at the latest. Close it.
func New(ctx context.Context, component string) *Term {
	t := &Term{component: component, number: newest.Add(1)}
	t.ctx, t.end = context.WithCancel(ctx)
	terms.Store(t.number, t)
	return t
}

// Component is the name given to New.
func (t *Term) Component() string { return t.component }

// Number tells the terms of a process apart. It is never zero.
func (t *Term) Number() uint64 { return t.number }

// Context ends with the term.
func (t *Term) Context() context.Context { return t.ctx }

// End ends the term's context.
func (t *Term) End() { t.end() }

// Close ends the term's context and forgets the term. An exit of a goroutine that is left
// of it then ends that goroutine only.
func (t *Term) Close() {
	t.end()
	terms.Delete(t.number)
}

// OnExit sets the function that the first exit calls before anything else.
func (t *Term) OnExit(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.onExit = f
}

// Exited returns the first exit of the term, or nil.
func (t *Term) Exited() *Exit {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.exit
}

// The labels of a term's goroutines. Crash reports and profiles show them, too.
const (
	labelComponent = "component"
	labelTerm      = "kthwd-term"
)

// Go runs f in a goroutine that belongs to the term, and sends its result. A panic of f is
// an exit of the term. If the term has an exit, the result is the exit, and ErrStillRunning
// if f has returned it.
func (t *Term) Go(f func(context.Context) error) <-chan error {
	result := make(chan error, 1)
	go pprof.Do(t.ctx, pprof.Labels(labelComponent, t.component, labelTerm, strconv.FormatUint(t.number, 10)), func(ctx context.Context) {
		var err error
		defer func() {
			if v := recover(); v != nil {
				t.left(&Exit{Reason: ReasonPanic, Where: PanicSite(), Cause: fmt.Sprint(v), Stack: string(debug.Stack())})
			}
			result <- t.because(err) // also when f has left by itself, without a result
		}()
		err = f(ctx)
	})
	return result
}

// because returns why the term has ended, if its program has returned err.
func (t *Term) because(err error) error {
	exit := t.Exited()
	switch {
	case exit == nil:
		return err
	case errors.Is(err, ErrStillRunning):
		return fmt.Errorf("%w; %w", exit, ErrStillRunning)
	}
	return exit
}

// Leave ends the term because of e, then the calling goroutine. It does not return.
func (t *Term) Leave(e *Exit) {
	t.left(e)
	runtime.Goexit()
}

func (t *Term) left(e *Exit) {
	t.mu.Lock()
	first := t.exit == nil
	if first {
		t.exit = e
		if t.onExit != nil {
			t.onExit()
		}
	}
	t.mu.Unlock()
	t.end()
}

// Current returns the term of the calling goroutine, or nil if it belongs to none. Of a term
// that was closed, it returns one without effect.
//
// A goroutine inherits the labels of the one that started it, in any library, and upstream
// sets none: this is exact where a stack is not, for a goroutine of client-go shows no
// program. The only exported way to read them is the goroutine profile. If they cannot be
// found, there is no term, and the caller stops the process.
func Current() *Term {
	reading.Lock()
	own := ownLabels()
	reading.Unlock()
	number, err := strconv.ParseUint(labelIn(own, labelTerm), 10, 64)
	if err != nil {
		return nil
	}
	if t, ok := terms.Load(number); ok {
		return t.(*Term)
	}
	closed := &Term{component: labelIn(own, labelComponent), number: number, exit: &Exit{}}
	closed.ctx, closed.end = context.WithCancel(context.Background())
	return closed
}

// reading makes the goroutine that is in ownLabels the only one.
var reading sync.Mutex

// ownLabels returns the calling goroutine's line of labels in the goroutine profile, where
// each goroutine is a paragraph:
//
//	1 @ 0x47e2ae 0x4d8af8
//	# labels: {"component":"kube-scheduler", "kthwd-term":"3"}
//	#	0x4d8af7	kthwd/appliance/term.ownLabels+0x37	kthwd/appliance/term/term.go:190
func ownLabels() string {
	var profile strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		return ""
	}
	for goroutine := range strings.SplitSeq(profile.String(), "\n\n") {
		if !strings.Contains(goroutine, "/term.ownLabels+") {
			continue
		}
		for line := range strings.SplitSeq(goroutine, "\n") {
			if strings.HasPrefix(line, "# labels: ") {
				return line
			}
		}
	}
	return ""
}

func labelIn(line, key string) string {
	_, value, _ := strings.Cut(line, strconv.Quote(key)+`:"`)
	value, _, _ = strings.Cut(value, `"`)
	return value
}

// PanicSite is the file and the line that panicked, for a deferred function that handles the
// panic.
func PanicSite() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	panicking := false
	for {
		frame, more := frames.Next()
		if frame.Function == "runtime.gopanic" {
			panicking = true
		} else if panicking && !strings.HasPrefix(frame.Function, "runtime.") {
			return fmt.Sprintf("%s:%d", frame.File, frame.Line)
		}
		if !more {
			return "an unknown place"
		}
	}
}
