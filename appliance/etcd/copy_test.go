package etcd

import "testing"

// A copy is under way from the first begin to the last end.
func TestCopies(t *testing.T) {
	var e Member
	if !e.Copying().IsZero() {
		t.Error("a new member copies")
	}
	first := e.copies.begin()
	since := e.Copying()
	second := e.copies.begin()
	first()
	if since.IsZero() || e.Copying() != since {
		t.Errorf("with one of two ended: since %v, then %v", since, e.Copying())
	}
	if second(); !e.Copying().IsZero() {
		t.Error("it copies without a copy")
	}
}
