package backup

import (
	"errors"
	"time"
)

// The steps of a backup and of a verification.
const (
	StepSnapshot = "snapshot" // a copy of the running member's database is opened; one without its size and state goes to the disk
	StepPack     = "pack"     // the archive is written, the database straight from the member
	StepExtract  = "extract"  // it is read back, and every sum compared
	StepRestore  = "restore"  // the database is restored into a temporary etcd
	StepRead     = "read"     // that etcd is read: revision, hash, number of keys, encrypted objects
	StepFiles    = "files"    // certificates and kubeconfigs are opened
	StepPrune    = "prune"
	StepHook     = "hook"
)

// Event is the progress of a step.
type Event struct {
	Step  string        `json:"step"`
	Done  int64         `json:"done,omitempty"` // bytes
	Total int64         `json:"total,omitempty"`
	Took  time.Duration `json:"tookNanoseconds,omitempty"` // set when the step has ended without an error
}

// step runs a part, with an event at its beginning, while bytes go through, and at its end.
func step(report func(Event), name string, total int64, do func(add func(int64)) error) error {
	begun, done, said := time.Now(), int64(0), int64(0)
	report(Event{Step: name, Total: total})
	add := func(n int64) {
		if done += n; done-said >= total/100 && done-said >= 1<<20 {
			said = done
			report(Event{Step: name, Done: done, Total: total})
		}
	}
	if err := do(add); err != nil {
		return &stepError{name, err}
	}
	report(Event{Step: name, Done: done, Total: total, Took: max(time.Since(begun), 1)})
	return nil
}

// stepError says in which step an error happened.
type stepError struct {
	step string
	err  error
}

func (s *stepError) Error() string { return s.err.Error() }

func (s *stepError) Unwrap() error { return s.err }

// StepOf returns the step in which a backup has failed, or "".
func StepOf(err error) string {
	if s, ok := errors.AsType[*stepError](err); ok {
		return s.step
	}
	return ""
}
