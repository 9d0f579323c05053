package etcd

import (
	"context"
	"errors"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"

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
	s := server.Server
	m := &status.Member{
		ID: s.MemberID().String(), Name: e.cfg.Name, Leader: s.Leader() == s.MemberID() && s.Leader() != 0,
		Learner: s.IsLearner(), Term: s.Term(), Applied: s.AppliedIndex(),
		Quota: quota(e.cfg), Fsync: e.fsyncs.Latency(time.Now()),
	}
	if b := s.Backend(); b != nil {
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
			Local: p.ID == s.MemberID(), Leader: p.ID == s.Leader(), Active: active[id], Unheard: unheard[id],
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
