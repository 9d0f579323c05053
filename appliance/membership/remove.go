package membership

import (
	"context"
	"net"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/agree"
	"kthwd/appliance/etcd"
	"kthwd/appliance/member"
	"kthwd/appliance/membership/change"
	"kthwd/appliance/supervise"
)

// remove removes a member, unless the others would lose their quorum. It returns the
// member as it was before.
func (m *Members) remove(ctx context.Context, name string) (member.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, change.Timeout)
	defer cancel()
	server, err := m.server()
	if err != nil {
		return member.Member{}, err
	}
	l, err := m.list(ctx)
	if err != nil {
		return member.Member{}, err
	}
	gone, err := l.MayRemove(name)
	if err != nil {
		return gone, err
	}
	if gone.Leader && !gone.Self {
		m.takeOver(ctx, server)
	}
	if gone.ID != "" {
		if err := change.Remove(ctx, m.layout, server, m.log, gone.ID); err != nil {
			return gone, err
		}
	}
	m.log.Info("member removed", "name", gone.Name, "address", gone.Address, "id", gone.ID)
	return gone, m.forget(ctx, gone)
}

// takeOver asks the leader to transfer leadership to this member. If that fails, the
// others notice the missing leader only after an election timeout.
func (m *Members) takeOver(ctx context.Context, server *embed.Etcd) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	err := m.tryTakeOver(ctx, server)
	if err != nil {
		m.log.Warn("leadership was not transferred before the leader is removed: no writes until the other members have elected a leader", "err", err)
	}
}

// tryTakeOver is takeOver, and returns once this member leads.
func (m *Members) tryTakeOver(ctx context.Context, server *embed.Etcd) error {
	client, err := change.LeaderClient(ctx, m.layout, server)
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.MoveLeader(ctx, uint64(server.Server.MemberID())); err != nil {
		return err
	}
	for server.Server.Leader() != server.Server.MemberID() && ctx.Err() == nil {
		supervise.Sleep(ctx, etcd.ReadyPoll)
	}
	return ctx.Err()
}

// forget deletes the traces of a removed member: its pending join, and the endpoint of its
// API server in the service kubernetes, which would stay for another 15 seconds. Only a
// failure to delete the join is an error.
func (m *Members) forget(ctx context.Context, gone member.Member) error {
	client, _, done, err := m.client()
	if err != nil {
		return err
	}
	defer done()
	if _, err := client.Delete(ctx, agree.Prefix+gone.ID); err != nil {
		m.log.Debug("the removed member's record of its flags stays, and is ignored", "err", err)
	}
	pending, _, err := m.joins(ctx, client)
	if err != nil {
		return change.Explain(err)
	}
	for _, j := range pending {
		if j.Name != gone.Name || j.Address != gone.Address {
			continue
		}
		if err := j.Forget(ctx, client); err != nil {
			return change.Explain(err)
		}
	}
	if gone.Role != member.Voter || net.ParseIP(gone.Address) == nil {
		return nil
	}
	if _, err := client.Delete(ctx, m.prefix+"/masterleases/"+gone.Address); err != nil {
		m.log.Warn("the removed member's API server stays among the endpoints until its lease ends", "address", gone.Address, "err", err)
	}
	return nil
}
