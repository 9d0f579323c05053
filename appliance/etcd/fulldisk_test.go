package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kthwd/appliance/etcd/requests"
	"kthwd/appliance/supervise"
	"kthwd/test/harness"
)

func TestLacksRoom(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("write wal: %w", syscall.ENOSPC), true},
		{fmt.Errorf("write wal: %w", syscall.EDQUOT), true},
		{fmt.Errorf("write wal: %w", syscall.EFBIG), true},
		{errors.New("failed to commit tx: file resize error: truncate db: no space left on device"), true},
		{fmt.Errorf("write wal: %w", syscall.EIO), false},
		{errors.New("failed to find database snapshot file"), false},
	} {
		if got := lacksRoom(c.err); got != c.want {
			t.Errorf("%v: got %v, want %v", c.err, got, c.want)
		}
	}
}

// part is a component of a group: its Run does what the function says.
type part struct {
	name string
	run  func(ctx context.Context, ready func()) error
}

func (p part) Name() string                                { return p.name }
func (p part) Run(ctx context.Context, ready func()) error { return p.run(ctx, ready) }

// in runs f as a component of a group that is asked to stop, or that a failure stops, when f
// has called ready. It returns the log.
func in(t *testing.T, failure error, f func(ctx context.Context, e *Member, ready func())) string {
	t.Helper()
	log := &harness.Log{}
	logger := log.Logger(slog.LevelWarn)
	e := &Member{log: logger, fatal: make(chan error, 1), requests: requests.New()}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g := supervise.New(logger)
	n := g.Add(part{"etcd", func(ctx context.Context, ready func()) error { f(ctx, e, ready); return nil }})
	g.Add(part{"the rest", func(ctx context.Context, ready func()) error {
		ready()
		if failure != nil {
			return failure
		}
		cancel()
		<-ctx.Done()
		return nil
	}}, n)
	if err := g.Run(ctx); !errors.Is(err, failure) || (err == nil) != (failure == nil) {
		t.Errorf("the group ends with %v, want %v", err, failure)
	}
	return log.String()
}

// A member that was asked to stop is closed. A fatal line, after which Close never returns,
// ends the wait: in order if the disk is full and nothing has failed before, else with its error.
func TestCloseOrLeaveOpen(t *testing.T) {
	full := fmt.Errorf("write wal: %w", syscall.ENOSPC)
	broken := fmt.Errorf("write wal: %w", syscall.EIO)
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		fatal   error // of etcd while it closes; nil if it closes
		failure error // that stops the group; nil if it is asked to stop
		want    error
	}{
		"closed":                           {nil, nil, nil},
		"full disk":                        {full, nil, nil},
		"full disk after a failure":        {full, boom, full},
		"disk error":                       {broken, nil, broken},
		"closed although something failed": {nil, boom, nil},
	} {
		t.Run(name, func(t *testing.T) {
			log := in(t, c.failure, func(ctx context.Context, e *Member, ready func()) {
				ready()
				<-ctx.Done()
				forever := make(chan struct{})
				t.Cleanup(func() { close(forever) })
				err := e.closeOrLeaveOpen(ctx, func() {
					if c.fatal != nil {
						e.died(c.fatal)
						<-forever
					}
				})
				if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			})
			said := strings.Contains(log, "stopping on a full disk") && strings.Contains(log, "make room before the next start")
			if want := c.fatal != nil && c.want == nil; said != want {
				t.Errorf("the log tells of a full disk: %v, want %v\n%s", said, want, log)
			}
		})
	}
}

// A full disk that is noticed before the stop reaches etcd fails all requests, and ends the
// watch when the member is asked to stop, not before.
func TestLeaveOpen(t *testing.T) {
	log := in(t, nil, func(ctx context.Context, e *Member, ready func()) {
		w := &watch{member: e}
		waiting := make(chan error, 1)
		handled := make(chan struct{})
		go func() {
			_, err := e.requests.Intercept(ctx, nil, nil, func(ctx context.Context, _ any) (any, error) {
				close(handled)
				<-ctx.Done()
				return nil, ctx.Err()
			})
			waiting <- err
		}()
		<-handled
		ended := make(chan error, 1)
		stop, asked := context.WithCancel(ctx)
		defer asked()
		go func() { ended <- w.leaveOpen(stop, syscall.ENOSPC) }()
		select {
		case err := <-waiting:
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "its disk is full") {
				t.Errorf("one that waits: got %v, want FailedPrecondition and the full disk", err)
			}
		case <-time.After(time.Minute):
			t.Error("a request waits for a lock that is never free")
		}
		select {
		case <-e.Abandoned():
		default:
			t.Error("the requests are not abandoned")
		}
		select {
		case err := <-ended:
			t.Errorf("the watch ended with %v before the member was asked to stop", err)
		default:
		}
		asked()
		if err := <-ended; err != nil {
			t.Errorf("got %v, want nil", err)
		}
		ready()
		<-ctx.Done()
	})
	if !strings.Contains(log, "stopping on a full disk") {
		t.Errorf("the log does not tell of the full disk:\n%s", log)
	}
}
