package appliance

import (
	"sync"
	"time"

	"kthwd/appliance/status"
)

// leaseRecord is what is known of one lease over all terms. A nil one records
// nothing.
type leaseRecord struct {
	mu sync.Mutex
	is status.Lease
}

func newLeaseRecord(component, identity string) *leaseRecord {
	return &leaseRecord{is: status.Lease{Name: component, Identity: identity}}
}

// held notes who has the lease now.
func (r *leaseRecord) held(by string) {
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
func (r *leaseRecord) lead() {
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
func (r *leaseRecord) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.is.Leading = false
}

// Lease is a copy of what is known.
func (r *leaseRecord) Lease() status.Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.is
}
