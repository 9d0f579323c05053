// Package membership changes which controllers are members of a running cluster.
//
// Members is a component that depends on etcd. Its Private handlers serve the verbs
// "kthwd member list, add, remove" on the unix socket. While a join is in progress, it
// keeps the join port open. While its etcd leads, it promotes learners that have
// caught up and removes those that do not arrive in time.
//
// A join has these steps:
//
//  1. add makes a token and records the join.
//  2. giveFiles sends the shared files to the new machine, in exchange for the token.
//  3. admit dials back to the machine's peer address, has every other controller do so
//     (reach.go), and only then adds the learner.
//  4. Arrive, on the new machine, records that the learner runs and has those files.
//  5. Run, on the leader, makes the learner a voter.
//
// The record is in etcd below /kthwd/joins, so any controller can continue a join.
//
// The joining machine's own side is in package join, the offline recovery in
// recovery.
package membership

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/member"
	"kthwd/appliance/membership/joins"
	"kthwd/appliance/membership/refusals"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// Config is the input of New.
type Config struct {
	Etcd       *etcd.Member
	Controller config.Controller
	Layout     pki.Layout
	Version    string // kthwd's own
	Prefix     string // of kube-apiserver's keys in etcd
	Log        *slog.Logger
}

// Members lists and removes the members of this controller's cluster, and adds
// further controllers. Make one with New.
type Members struct {
	etcd    *etcd.Member
	cfg     config.Controller
	layout  pki.Layout
	version string
	prefix  string
	log     *slog.Logger

	endpoint         *joinEndpoint
	refused          *refusals.Counter
	address          readdressing
	loneLeaderLogged bool   // used by Run's goroutine only
	dialled          string // the last request to dial a joiner; used by Run's goroutine only

	tasks sync.WaitGroup // of Run
}

// New prepares the component. It opens nothing.
func New(c Config) *Members {
	m := &Members{etcd: c.Etcd, cfg: c.Controller, layout: c.Layout, version: c.Version, prefix: c.Prefix, log: c.Log, refused: refusals.NewCounter()}
	m.endpoint = &joinEndpoint{
		address: net.JoinHostPort(m.cfg.AdvertiseAddress, strconv.Itoa(m.cfg.JoinPort)),
		layout:  m.layout, handler: m.joinHandler(), log: m.log,
	}
	return m
}

// Private returns the handlers of kthwd's verbs, for the unix socket.
func (m *Members) Private() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /members":           answer(func(r *http.Request) (any, error) { return m.list(r.Context()) }),
		"POST /members":          answer(m.addRequest),
		"DELETE /members/{name}": answer(func(r *http.Request) (any, error) { return m.remove(r.Context(), r.PathValue("name")) }),
	}
}

// answer makes a handler that encodes the result of f as JSON, or its error.
func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			status.Refuse(w, http.StatusConflict, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // an error means that the client has gone
	}
}

// server returns the running member.
func (m *Members) server() (*embed.Etcd, error) {
	if server := m.etcd.Running(); server != nil {
		return server, nil
	}
	return nil, advice.With(errors.New("etcd has not started yet"), "kthwd status says what it waits for")
}

// client returns a client of the running member. The caller must call done.
func (m *Members) client() (client *clientv3.Client, server *embed.Etcd, done func(), err error) {
	if server, err = m.server(); err != nil {
		return nil, nil, nil, err
	}
	client = v3client.New(server.Server)
	return client, server, func() { client.Close() }, nil
}

// list returns the members as the leader sees them, or without one as this controller does.
func (m *Members) list(ctx context.Context) (member.List, error) {
	client, server, done, err := m.client()
	if err != nil {
		return member.List{}, err
	}
	defer done()
	under := m.underWay(ctx, client)
	self, leader := server.Server.MemberID(), view.LeaderOf(server)
	m.etcd.AskLeader(ctx)
	active, says := m.etcd.Participants(server)
	l := member.List{Seen: says, Elsewhere: m.etcd.Quorum().Elsewhere}
	for _, e := range server.Server.Cluster().Members() {
		id := e.ID.String()
		one := member.Member{
			Name: e.Name, Address: view.PeerHost(e), ID: id, Role: member.Voter,
			Up: active[id], Leader: e.ID == leader, Self: e.ID == self,
		}
		if e.IsLearner {
			one.Role = member.Learner
		}
		if one.Name == "" {
			one.Name = id // it has never run, and no known join added it
		}
		for i, j := range under {
			if j.Member([]*membership.Member{e}) == nil {
				continue
			}
			under = slices.Delete(under, i, i+1)
			if one.Role == member.Learner {
				one.Name, one.Remains = j.Name, j.left
			}
			break
		}
		l.Members = append(l.Members, one)
	}
	for _, j := range under {
		l.Members = append(l.Members, member.Member{Name: j.Name, Address: j.Address, Role: member.Joining, Remains: j.left})
	}
	slices.SortFunc(l.Members, func(a, b member.Member) int { return strings.Compare(a.Name, b.Name) })
	return l, nil
}

// timed is a join and its remaining time.
type timed struct {
	joins.Join
	left time.Duration
}

// underWay returns the joins that this member has stored. Without a quorum their
// remaining time is unknown.
func (m *Members) underWay(ctx context.Context, client *clientv3.Client) (all []timed) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	pending, _, err := m.joins(ctx, client, clientv3.WithSerializable())
	if err != nil {
		m.log.Debug("joins not read", "err", err)
	}
	for _, j := range pending {
		all = append(all, timed{j, j.Remains(ctx, client)})
	}
	return all
}

var _ supervise.Component = (*Members)(nil)
