// Package change makes a change of etcd's membership: through the leader where the connections of this
// member do not suffice, again while etcd finds the members unhealthy, and with an explanation where
// etcd refuses it.
package change

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"google.golang.org/grpc"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcd"
	"kthwd/appliance/pki"
)

// Timeout bounds one change of the membership. It exceeds the time for which etcd
// refuses a change because a member has not been connected long enough
// (etcdserver/server.go:HealthInterval).
const Timeout = 15 * time.Second

// LeaderClient returns a client of the leader. The caller must close it.
func LeaderClient(ctx context.Context, l pki.Layout, server *embed.Etcd) (*clientv3.Client, error) {
	leader := server.Server.Cluster().Member(server.Server.Leader())
	if leader == nil {
		return nil, etcderrors.ErrNoLeader
	}
	tls, err := pki.ClientTLS(l)
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{Endpoints: leader.ClientURLs, TLS: tls, Context: ctx, Logger: server.Server.Logger(), DialOptions: []grpc.DialOption{grpc.WithNoProxy()}})
}

// ThroughLeader makes a change of the membership at the leader. etcd judges a change by the
// connections of the member that is asked, and those of a follower may be cut while the
// quorum commits.
func ThroughLeader(ctx context.Context, l pki.Layout, server *embed.Etcd, log *slog.Logger, change func(*clientv3.Client) error) error {
	if server.Server.Leader() == server.Server.MemberID() {
		return etcderrors.ErrUnhealthy
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	client, err := LeaderClient(ctx, l, server)
	if err != nil {
		return etcderrors.ErrUnhealthy
	}
	defer client.Close()
	if err := change(client); err != nil {
		log.Debug("change not made through the leader", "err", err)
		return etcderrors.ErrUnhealthy
	}
	return nil
}

// Remove removes the member with an ID, and retries while etcd finds the members unhealthy.
func Remove(ctx context.Context, l pki.Layout, server *embed.Etcd, log *slog.Logger, hex string) error {
	id, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		return fmt.Errorf("member ID %q: %w", hex, err)
	}
	return Retry(ctx, func() error {
		_, err := server.Server.RemoveMember(ctx, id)
		if errors.Is(err, etcderrors.ErrUnhealthy) {
			err = ThroughLeader(ctx, l, server, log, func(c *clientv3.Client) error {
				_, err := c.MemberRemove(ctx, id)
				return err
			})
		}
		return err
	})
}

// Retry repeats a change of the membership that etcd refuses because a member
// connected or disconnected within the last five seconds.
func Retry(ctx context.Context, change func() error) error {
	for {
		err := change()
		if !errors.Is(err, etcderrors.ErrUnhealthy) {
			return Explain(err)
		}
		select {
		case <-time.After(etcd.QuorumPoll):
		case <-ctx.Done():
			return Explain(err)
		}
	}
}

// OutcomeUnknown reports whether a change that failed with err may have taken effect.
func OutcomeUnknown(err error) bool {
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

// Explain explains etcd's reasons for refusing a change.
func Explain(err error) error {
	switch {
	case errors.Is(err, etcderrors.ErrUnhealthy), errors.Is(err, etcderrors.ErrNotEnoughStartedMembers):
		return advice.With(errors.New("etcd refuses the change: too few members have been connected for the last five seconds"),
			"kthwd member list shows the members that are down; bring them back, or remove them first")
	case OutcomeUnknown(err), errors.Is(err, etcderrors.ErrNoLeader):
		return advice.With(fmt.Errorf("the members did not agree in time: %w", err), "kthwd status says whether there is a quorum; look with kthwd member list before you try again")
	}
	return err
}
