package etcdmetrics

import (
	"expvar"

	"go.etcd.io/etcd/client/pkg/v3/types"
	_ "go.etcd.io/etcd/server/v3/etcdserver" // publishes raft.status
	"go.etcd.io/raft/v3"
)

// Acknowledged returns the IDs of the members that have answered the local member as their
// leader since raft last looked, which it does once per election timeout. leads is false,
// and there are no IDs, if the local member does not lead. raft publishes its state as a
// variable (etcdserver/raft.go).
func Acknowledged(local types.ID) (by map[string]bool, leads bool) {
	published, ok := expvar.Get("raft.status").(expvar.Func)
	if !ok {
		return nil, false
	}
	s, ok := published().(raft.Status)
	if !ok || s.ID != uint64(local) || s.RaftState != raft.StateLeader {
		return nil, false
	}
	by = map[string]bool{}
	for id, p := range s.Progress {
		if id == s.ID || p.RecentActive {
			by[types.ID(id).String()] = true
		}
	}
	return by, true
}
