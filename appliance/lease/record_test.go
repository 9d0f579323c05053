package lease

import (
	"testing"

	"kthwd/appliance/status"
)

// Tests of terms have no record.
func TestNilRecord(t *testing.T) {
	var r *Record
	r.held("c1_1")
	r.lead()
	r.end()
	if got := r.Lease(); got != (status.Lease{}) {
		t.Errorf("the lease of no record is %+v", got)
	}
}
