package appliance

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
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/config"
	"kthwd/appliance/member"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// members is what this controller does about the membership of its cluster: the
// list, removals, and further controllers that join.
type members struct {
	etcd    *etcd
	cfg     config.Controller
	layout  pki.Layout
	version string // kthwd's own
	prefix  string // of kube-apiserver's keys in etcd
	log     *slog.Logger

	endpoint *joinEndpoint
	passedOn bool // of Run
}

// newMembers prepares it. It opens nothing.
func newMembers(m members) *members {
	m.endpoint = &joinEndpoint{
		address: net.JoinHostPort(m.cfg.AdvertiseAddress, strconv.Itoa(m.cfg.JoinPort)),
		layout:  m.layout, handler: m.joinHandler(), log: m.log,
	}
	return &m
}

// private are the requests of kthwd's verbs, for the unix socket.
func (m *members) private() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /members":           answer(func(r *http.Request) (any, error) { return m.list(r.Context()) }),
		"POST /members":          answer(m.addRequest),
		"DELETE /members/{name}": answer(func(r *http.Request) (any, error) { return m.remove(r.Context(), r.PathValue("name")) }),
	}
}

// answer makes a handler of a function that returns what is to be JSON, or why not.
func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			status.Refuse(w, http.StatusConflict, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // the client has gone; there is nobody to tell
	}
}

// server is the member that runs.
func (m *members) server() (*embed.Etcd, error) {
	if server := m.etcd.running(); server != nil {
		return server, nil
	}
	return nil, WithHint(errors.New("etcd has not started yet"), "kthwd status says what it waits for")
}

// client is one of the member that runs. The caller calls done.
func (m *members) client() (client *clientv3.Client, server *embed.Etcd, done func(), err error) {
	if server, err = m.server(); err != nil {
		return nil, nil, nil, err
	}
	client = v3client.New(server.Server)
	return client, server, func() { client.Close() }, nil
}

// list is the cluster as this controller sees it, whether there is a quorum or not.
func (m *members) list(ctx context.Context) (member.List, error) {
	client, server, done, err := m.client()
	if err != nil {
		return member.List{}, err
	}
	defer done()
	under := m.underWay(ctx, client)
	self, leader := server.Server.MemberID(), server.Server.Leader()
	active := m.etcd.reachable(server)
	var l member.List
	for _, e := range server.Server.Cluster().Members() {
		id := e.ID.String()
		one := member.Member{
			Name: e.Name, Address: peerHost(e), ID: id, Role: member.Voter,
			Up: e.ID == self || active[id], Leader: e.ID == leader, Self: e.ID == self,
		}
		if e.IsLearner {
			one.Role = member.Learner
		}
		if one.Name == "" {
			one.Name = id // it has never run, and nobody here has added it
		}
		for i, j := range under {
			if j.member([]*membership.Member{e}) == nil {
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

// timed is a join, and how long it has left.
type timed struct {
	join
	left time.Duration
}

// underWay are the joins as this member knows them. Without a quorum it is not
// known how long they have left.
func (m *members) underWay(ctx context.Context, client *clientv3.Client) (all []timed) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	pending, _, err := joins(ctx, client, clientv3.WithSerializable())
	if err != nil {
		m.log.Debug("joins not read", "err", err)
	}
	for _, j := range pending {
		all = append(all, timed{j, j.remains(ctx, client)})
	}
	return all
}

var _ supervise.Component = (*members)(nil)
