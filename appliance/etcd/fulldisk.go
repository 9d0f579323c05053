package etcd

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"kthwd/appliance/etcd/requests"
	"kthwd/appliance/supervise"
)

// noRoom are the errors of a write for which there is no room.
var noRoom = []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG}

// lacksRoom reports whether a fatal line of etcd is about a write for which there is no room.
// The text decides as well, because bbolt does not wrap the error of a file that cannot grow
// (go.etcd.io/bbolt/db.go: "file resize error").
func lacksRoom(err error) bool {
	for _, e := range noRoom {
		if errors.Is(err, e) || strings.Contains(err.Error(), e.Error()) {
			return true
		}
	}
	return false
}

// wasAskedToStop reports whether the group stops, and not because of a failure.
func wasAskedToStop(ctx context.Context) bool {
	return errors.Is(context.Cause(supervise.Leaving(ctx)), context.Canceled)
}

// leaveOpen ends the watch of a member that can no longer write and was asked to stop
// before. etcd commits to its database every 100 ms and once more when it closes; the commit
// that fails is fatal (storage/backend/batch_tx.go), and its goroutine is parked with the
// database's locks. So the database is not closed. That loses nothing: a commit is done
// or not done, and all acknowledged writes are in the write-ahead log.
func (w *watch) leaveOpen(ctx context.Context, err error) error {
	w.member.sayLeftOpen(err)
	w.member.requests.Fail(requests.ErrFullDisk) // those that wait for a lock would wait forever
	<-ctx.Done()
	return nil
}

func (e *Member) sayLeftOpen(err error) {
	e.log.Warn("stopping on a full disk: the database stays as it was last committed; every acknowledged write is in the write-ahead log, from which the next start takes it",
		"err", err, "hint", "make room before the next start")
}

// closeOrLeaveOpen closes a member that was asked to stop. A fatal line ends the wait: etcd's
// Close never returns after it.
func (e *Member) closeOrLeaveOpen(ctx context.Context, closeAll func()) error {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		closeAll()
	}()
	select {
	case <-closed:
		return nil
	case err := <-e.fatal:
		if !lacksRoom(err) || !wasAskedToStop(ctx) {
			return err
		}
		e.sayLeftOpen(err)
		return nil
	}
}
