package etcdmetrics

import (
	"expvar"
	"testing"
)

// etcd still publishes raft's state, and nobody leads where nothing runs.
func TestAcknowledged(t *testing.T) {
	if _, ok := expvar.Get("raft.status").(expvar.Func); !ok {
		t.Error("raft.status: not found")
	}
	if by, leads := Acknowledged(1); leads || by != nil {
		t.Errorf("without a member: got %v, %v", by, leads)
	}
}
