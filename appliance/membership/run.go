package membership

import (
	"context"
	"errors"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"kthwd/appliance/etcd/view"
	"kthwd/appliance/etcdmetrics"
	"kthwd/appliance/membership/change"
	"kthwd/appliance/membership/joins"
	"kthwd/appliance/supervise"
)

// Name is the name of the component.
const Name = "members"

// Name implements supervise.Component.
func (m *Members) Name() string { return Name }

// Run implements supervise.Component. While another controller may join, it keeps
// the join endpoint open. While this member leads etcd, it promotes each learner that
// has caught up and removes those that do not arrive. Otherwise it only watches.
func (m *Members) Run(ctx context.Context, ready func()) error {
	client, server, done, err := m.client()
	if err != nil {
		return err
	}
	defer done()
	defer m.endpoint.close()
	ready()
	defer m.tasks.Wait()
	m.tasks.Go(func() { m.keepAddress(ctx, server) })
	for ctx.Err() == nil {
		if err := m.follow(ctx, client, server); err != nil && ctx.Err() == nil {
			m.log.Debug("joins not followed", "err", err)
			supervise.Sleep(ctx, time.Second)
		}
	}
	return nil
}

// joinPoll is the interval at which a join in progress is checked.
const joinPoll = 500 * time.Millisecond

// follow acts on the joins after each change and, while any exist, every joinPoll.
func (m *Members) follow(ctx context.Context, client *clientv3.Client, server *embed.Etcd) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pending, revision, err := m.joins(ctx, client, clientv3.WithSerializable())
	if err != nil {
		return err
	}
	changes := client.Watch(ctx, joins.Prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	for {
		m.act(ctx, client, server, pending)
		again := m.giveUpLeadership(ctx, server)
		var soon <-chan time.Time // usually nil, so that an idle process is not woken
		if len(pending) > 0 || again {
			soon = time.After(joinPoll)
		}
		select {
		case <-soon:
		case <-server.Server.LeaderChangedNotify():
		case change, ok := <-changes:
			if !ok {
				return ctx.Err()
			}
			if err := change.Err(); err != nil {
				return err
			}
			if pending, _, err = m.joins(ctx, client, clientv3.WithSerializable()); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// giveUpLeadership transfers leadership to another member if this one still has the timing
// of a lone member, which it keeps until its next start. It returns true if the caller must
// call it again.
func (m *Members) giveUpLeadership(ctx context.Context, server *embed.Etcd) (again bool) {
	if !m.etcd.HasLoneTiming() || view.Voters(server) < 2 || server.Server.Leader() != server.Server.MemberID() {
		return false
	}
	if !m.loneLeaderLogged {
		m.loneLeaderLogged = true
		m.log.Info("etcd has the timing of a lone member until its next start: leadership moves to another member")
	}
	m.etcd.TransferLeadership(ctx, server, slog.LevelInfo)
	return true
}

// act opens or closes the endpoint and, on the leader, advances the joins.
func (m *Members) act(ctx context.Context, client *clientv3.Client, server *embed.Etcd, pending []joins.Join) {
	if len(pending) == 0 {
		m.endpoint.close()
		return
	}
	_ = m.endpoint.open() // it logs its error once
	m.answerDials(ctx, client, server, pending)
	if server.Server.Leader() != server.Server.MemberID() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, change.Timeout)
	defer cancel()
	for _, j := range pending {
		over, err := m.advance(ctx, server, j)
		if err == nil && over {
			err = j.Forget(ctx, client)
		}
		if err != nil {
			m.log.Debug("join not advanced", "name", j.Name, "err", err)
		}
	}
}

// advance takes the next step of a join. The join is over when the controller votes or has
// failed to arrive in time.
func (m *Members) advance(ctx context.Context, server *embed.Etcd, j joins.Join) (over bool, err error) {
	learner := j.Member(server.Server.Cluster().Members())
	switch {
	case learner == nil && !j.Valid:
		m.log.Info("the token has expired", "name", j.Name, "address", j.Address)
		return true, nil
	case learner == nil:
		return false, nil
	case !learner.IsLearner:
		return true, nil
	case j.Arrived && etcdmetrics.ActivePeers(server.Server.MemberID())[learner.ID.String()]:
		if err := m.promote(ctx, server, learner, j); err == nil || !errors.Is(err, etcderrors.ErrLearnerNotReady) {
			return err == nil, err
		}
	}
	if j.Valid {
		return false, nil
	}
	if err := change.Remove(ctx, m.layout, server, m.log, learner.ID.String()); err != nil {
		return false, err
	}
	m.log.Warn("a controller did not arrive in time and is no longer a member", "name", j.Name, "address", j.Address)
	return true, nil
}

// promote makes a learner that has caught up a voter.
func (m *Members) promote(ctx context.Context, server *embed.Etcd, learner *membership.Member, j joins.Join) error {
	_, err := server.Server.PromoteMember(ctx, uint64(learner.ID))
	if err != nil {
		return err
	}
	m.log.Info("learner has caught up and votes now", "name", j.Name, "address", j.Address, "members", view.Voters(server))
	return nil
}
