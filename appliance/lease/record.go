package lease

import (
	"sync"
	"time"

	"kthwd/appliance/status"
)

// Record is what is known of one lease over all terms. A nil one records
// nothing.
type Record struct {
	mu sync.Mutex
	is status.Lease
}

func NewRecord(component, identity string) *Record {
	return &Record{is: status.Lease{Name: component, Identity: identity}}
}

// held notes who has the lease now.
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

// lead notes the beginning of a term of ours.
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

// end notes the end of a term of ours; who is next is not known yet.
func (r *Record) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.is.Leading = false
}

// Lease is a copy of what is known.
func (r *Record) Lease() status.Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.is
}
