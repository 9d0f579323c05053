package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"google.golang.org/grpc"

	"kthwd/appliance/advice"
	"kthwd/appliance/agree"
	"kthwd/appliance/etcd"
	"kthwd/appliance/member"
	"kthwd/appliance/pki"
	"kthwd/appliance/supervise"
)

// changeTimeout bounds one change of the membership. It exceeds the time for which etcd
// refuses a change because a member has not been connected long enough
// (etcdserver/server.go:HealthInterval).
const changeTimeout = 15 * time.Second

// remove removes a member, unless the others would lose their quorum. It returns the
// member as it was before.
func (m *Members) remove(ctx context.Context, name string) (member.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
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
		if err := m.removeID(ctx, server, gone.ID); err != nil {
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
	client, err := m.leaderClient(ctx, server)
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

// leaderClient returns a client of the leader. The caller must close it.
func (m *Members) leaderClient(ctx context.Context, server *embed.Etcd) (*clientv3.Client, error) {
	leader := server.Server.Cluster().Member(server.Server.Leader())
	if leader == nil {
		return nil, etcderrors.ErrNoLeader
	}
	tls, err := pki.ClientTLS(m.layout)
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{Endpoints: leader.ClientURLs, TLS: tls, Context: ctx, Logger: server.Server.Logger(), DialOptions: []grpc.DialOption{grpc.WithNoProxy()}})
}

// throughLeader makes a change of the membership at the leader. etcd judges a change by the
// connections of the member that is asked, and those of a follower may be cut while the
// quorum commits.
func (m *Members) throughLeader(ctx context.Context, server *embed.Etcd, change func(*clientv3.Client) error) error {
	if server.Server.Leader() == server.Server.MemberID() {
		return etcderrors.ErrUnhealthy
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	client, err := m.leaderClient(ctx, server)
	if err != nil {
		return etcderrors.ErrUnhealthy
	}
	defer client.Close()
	if err := change(client); err != nil {
		m.log.Debug("change not made through the leader", "err", err)
		return etcderrors.ErrUnhealthy
	}
	return nil
}

// removeID removes the member, and retries while etcd finds the members unhealthy.
func (m *Members) removeID(ctx context.Context, server *embed.Etcd, hex string) error {
	id, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		return fmt.Errorf("member ID %q: %w", hex, err)
	}
	return retryUnhealthy(ctx, func() error {
		_, err := server.Server.RemoveMember(ctx, id)
		if errors.Is(err, etcderrors.ErrUnhealthy) {
			err = m.throughLeader(ctx, server, func(c *clientv3.Client) error {
				_, err := c.MemberRemove(ctx, id)
				return err
			})
		}
		return err
	})
}

// retryUnhealthy repeats a change of the membership that etcd refuses because a member
// connected or disconnected within the last five seconds.
func retryUnhealthy(ctx context.Context, change func() error) error {
	for {
		err := change()
		if !errors.Is(err, etcderrors.ErrUnhealthy) {
			return changeError(err)
		}
		select {
		case <-time.After(etcd.QuorumPoll):
		case <-ctx.Done():
			return changeError(err)
		}
	}
}

// outcomeUnknown reports whether a change that failed with err may have taken effect.
func outcomeUnknown(err error) bool {
	for _, unsure := range []error{
		etcderrors.ErrTimeout, etcderrors.ErrTimeoutDueToConnectionLost, etcderrors.ErrTimeoutDueToLeaderFail,
		etcderrors.ErrStopped, context.DeadlineExceeded, context.Canceled,
	} {
		if errors.Is(err, unsure) {
			return true
		}
	}
	return false
}

// changeError explains etcd's reasons for refusing a change.
func changeError(err error) error {
	switch {
	case errors.Is(err, etcderrors.ErrUnhealthy), errors.Is(err, etcderrors.ErrNotEnoughStartedMembers):
		return advice.With(errors.New("etcd refuses the change: too few members have been connected for the last five seconds"),
			"kthwd member list shows the members that are down; bring them back, or remove them first")
	case outcomeUnknown(err), errors.Is(err, etcderrors.ErrNoLeader):
		return advice.With(fmt.Errorf("the members did not agree in time: %w", err), "kthwd status says whether there is a quorum; look with kthwd member list before you try again")
	}
	return err
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
		return changeError(err)
	}
	for _, j := range pending {
		if j.Name != gone.Name || j.Address != gone.Address {
			continue
		}
		if err := j.forget(ctx, client); err != nil {
			return changeError(err)
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
