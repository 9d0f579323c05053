package etcd

import (
	"context"
	"errors"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"kthwd/appliance/etcd/view"
	"kthwd/appliance/status"
)

// SerializableRead reads a missing key from this member's own store, without a quorum.
func (e *Member) SerializableRead(ctx context.Context) error {
	e.mu.Lock()
	server := e.server
	e.mu.Unlock()
	if server == nil {
		return errors.New("etcd has not started")
	}
	_, err := server.Server.Range(ctx, &pb.RangeRequest{Key: []byte("kthwd"), Serializable: true, Limit: 1})
	return err
}

// Member reports the state of this member and its view of the cluster. It returns nil
// before the server has started.
func (e *Member) Member() *status.Member {
	e.mu.Lock()
	server := e.server
	e.mu.Unlock()
	if server == nil {
		return nil
	}
	s, leader := server.Server, view.LeaderOf(server)
	m := &status.Member{
		ID: s.MemberID().String(), Name: e.cfg.Name, Leader: leader == s.MemberID() && leader != 0,
		Learner: s.IsLearner(), Term: s.Term(), Applied: s.AppliedIndex(),
		Quota: quota(e.cfg), Fsync: e.fsyncs.Latency(time.Now()),
	}
	m.Copying = e.Copying()
	if m.Defragmenting = e.Defragmenting(); !m.Defragmenting.IsZero() {
		m.Fsync = status.Latency{} // the disk is busy with the new file, not slow
	}
	if size, inUse, locked := e.defrag.sizes(); locked {
		m.Size, m.InUse = size, inUse // the lock of Backend is held
	} else if b := s.Backend(); b != nil {
		m.Size, m.InUse = b.Size(), b.SizeInUse()
	}
	for _, a := range s.Alarms() {
		if alarm := a.GetAlarm().String(); !slices.Contains(m.Alarms, alarm) {
			m.Alarms = append(m.Alarms, alarm)
		}
	}
	active, _ := e.Participants(server)
	unheard := e.unheard(server, active)
	for _, p := range s.Cluster().Members() {
		id := p.ID.String()
		m.Members = append(m.Members, status.MemberInfo{
			ID: id, Name: p.Name, URLs: p.PeerURLs, Learner: p.IsLearner,
			Local: p.ID == s.MemberID(), Leader: p.ID == leader, Active: active[id], Unheard: unheard[id],
		})
	}
	return m
}

// quota is the maximum size of the database in bytes (storage/quota.go).
func quota(cfg *embed.Config) int64 {
	if cfg.QuotaBackendBytes > 0 {
		return cfg.QuotaBackendBytes
	}
	return 2 << 30
}

// StateDefragmenting is among the errors of a StatusResponse while the member defragments.
const StateDefragmenting = "defragmenting"

// StatusResponse is the answer of etcd's own maintenance API about this member.
func (e *Member) StatusResponse() (*pb.StatusResponse, error) {
	server := e.Running()
	if server == nil {
		return nil, grpcstatus.Error(codes.Unavailable, "etcd has not started")
	}
	s, m := server.Server, e.Member()
	r := &pb.StatusResponse{
		Header:  &pb.ResponseHeader{ClusterId: uint64(s.Cluster().ID()), MemberId: uint64(s.MemberID()), Revision: s.KV().Rev(), RaftTerm: s.Term()},
		Version: version.Version, Leader: uint64(view.LeaderOf(server)), RaftTerm: s.Term(), IsLearner: m.Learner,
		RaftIndex: s.CommittedIndex(), RaftAppliedIndex: s.AppliedIndex(), DbSize: m.Size, DbSizeInUse: m.InUse, DbSizeQuota: m.Quota,
	}
	for _, a := range s.Alarms() {
		r.Errors = append(r.Errors, a.String())
	}
	if !m.Defragmenting.IsZero() {
		r.Errors = append(r.Errors, StateDefragmenting)
	}
	return r, nil
}
