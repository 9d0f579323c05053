// Package view has what a member of etcd knows of its cluster at this moment, without asking anybody.
package view

import (
	"net/url"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
)

// LeaderOf returns the current leader in this member's view, or 0. A leader that is not a
// member does not count, because any client of the peer port can claim to lead.
func LeaderOf(server *embed.Etcd) types.ID {
	leader := server.Server.Leader()
	if leader != 0 && server.Server.Cluster().Member(leader) == nil {
		return 0
	}
	return leader
}

// Learns tells whether the member is a learner. EtcdServer.IsLearner panics for a removed
// member; this returns false.
func Learns(server *embed.Etcd) bool {
	m := server.Server.Cluster().Member(server.Server.MemberID())
	return m != nil && m.IsLearner
}

// Voters returns the number of voting members.
func Voters(server *embed.Etcd) (n int) {
	for _, m := range server.Server.Cluster().Members() {
		if !m.IsLearner {
			n++
		}
	}
	return n
}

// PeerHost returns the address at which the other members reach a member; "" if unknown.
func PeerHost(e *membership.Member) string {
	if len(e.PeerURLs) == 0 {
		return ""
	}
	u, err := url.Parse(e.PeerURLs[0])
	if err != nil {
		return e.PeerURLs[0]
	}
	return u.Hostname()
}

// NameOf returns the name of a member, or its ID if it has none; "" for the ID 0.
func NameOf(server *embed.Etcd, id types.ID) string {
	if id == 0 {
		return ""
	}
	if m := server.Server.Cluster().Member(id); m != nil && m.Name != "" {
		return m.Name
	}
	return id.String()
}
