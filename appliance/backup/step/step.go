// Package step names the steps of a backup, of a verification and of a restore, and tells how far each
// has come.
package step

import (
	"errors"
	"time"
)

// The steps of a backup and of a verification.
const (
	Snapshot = "snapshot" // a copy of the running member's database is opened; one without its size and state goes to the disk
	Pack     = "pack"     // the archive is written, the database straight from the member
	Extract  = "extract"  // it is read back, and every sum compared
	Restore  = "restore"  // the database is restored into a temporary etcd
	Read     = "read"     // that etcd is read: revision, hash, number of keys, encrypted objects
	Files    = "files"    // certificates and kubeconfigs are opened
	Prune    = "prune"
	Hook     = "hook"
)

// Event is the progress of a step.
type Event struct {
	Step  string        `json:"step"`
	Done  int64         `json:"done,omitempty"` // bytes
	Total int64         `json:"total,omitempty"`
	Took  time.Duration `json:"tookNanoseconds,omitempty"` // set when the step has ended without an error
}

// Run runs a part, with an event at its beginning, while bytes go through, and at its end.
func Run(report func(Event), name string, total int64, do func(add func(int64)) error) error {
	begun, done, said := time.Now(), int64(0), int64(0)
	report(Event{Step: name, Total: total})
	add := func(n int64) {
		if done += n; done-said >= total/100 && done-said >= 1<<20 {
			said = done
			report(Event{Step: name, Done: done, Total: total})
		}
	}
	if err := do(add); err != nil {
		return &Error{name, err}
	}
	report(Event{Step: name, Done: done, Total: total, Took: max(time.Since(begun), 1)})
	return nil
}

// Error says in which step an error happened.
type Error struct {
	Step string
	Err  error
}

func (s *Error) Error() string { return s.Err.Error() }

func (s *Error) Unwrap() error { return s.Err }

// Of returns the step in which a backup has failed, or "".
func Of(err error) string {
	if s, ok := errors.AsType[*Error](err); ok {
		return s.Step
	}
	return ""
}
