package lease

import (
	"sync"
	"time"

	"kthwd/appliance/status"
)

// Record is the state of one lease, over all terms. Its methods may be called from any
// goroutine. A nil Record, as in tests, records nothing.
type Record struct {
	mu sync.Mutex
	is status.Lease
}

// NewRecord makes the record of a component's lease. identity is this controller's.
func NewRecord(component, identity string) *Record {
	return &Record{is: status.Lease{Name: component, Identity: identity}}
}

// held records the current holder of the lease.
func (r *Record) held(by string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.is.Holder != by {
		r.is.Holder, r.is.Since = by, time.Now()
	}
}

// lead records the start of a term of this controller.
func (r *Record) lead() {
	if r == nil {
		return
	}
	r.held(r.is.Identity)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.is.Leading = true
	r.is.Terms++
}

// end records the end of a term of this controller. The next holder is not known yet.
func (r *Record) end() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.is.Leading = false
}

// leaked counts a term that could not be stopped.
func (r *Record) leaked() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.is.Leaked++
}

// Lease returns a copy of the state for the status report.
func (r *Record) Lease() status.Lease {
	if r == nil {
		return status.Lease{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.is
}
