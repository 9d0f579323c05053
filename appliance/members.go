package appliance

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"kthwd/appliance/config"
	"kthwd/appliance/member"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
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
	pending, _, err := m.joins(ctx, client, clientv3.WithSerializable())
	if err != nil {
		m.log.Debug("joins not read", "err", err)
	}
	for _, j := range pending {
		all = append(all, timed{j, j.remains(ctx, client)})
	}
	return all
}

// peerHost is where the other members reach one.
func peerHost(e *membership.Member) string {
	if len(e.PeerURLs) == 0 {
		return ""
	}
	u, err := url.Parse(e.PeerURLs[0])
	if err != nil {
		return e.PeerURLs[0]
	}
	return u.Hostname()
}

// changeTimeout bounds one change of the membership, and how long etcd may find
// that the members have not been connected for long enough (etcdserver/server.go:
// HealthInterval).
const changeTimeout = 15 * time.Second

// remove takes a member out of the cluster, if the others are then still one. It
// returns the member as it was.
func (m *members) remove(ctx context.Context, name string) (member.Member, error) {
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

// takeOver has the leader pass the leadership on to this member: without that, the
// others notice after an election timeout that it has gone. Failing costs that.
func (m *members) takeOver(ctx context.Context, server *embed.Etcd) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	err := m.tryTakeOver(ctx, server)
	if err != nil {
		m.log.Warn("the leader is removed without handing over: no writes until the others have elected one", "err", err)
	}
}

func (m *members) tryTakeOver(ctx context.Context, server *embed.Etcd) error {
	leader := server.Server.Cluster().Member(server.Server.Leader())
	if leader == nil {
		return etcderrors.ErrNoLeader
	}
	tls, err := clusterTLS(m.layout)
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: leader.ClientURLs, TLS: tls, Context: ctx, Logger: server.Server.Logger()})
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.MoveLeader(ctx, uint64(server.Server.MemberID())); err != nil {
		return err
	}
	for server.Server.Leader() != server.Server.MemberID() && ctx.Err() == nil {
		sleep(ctx, readyPoll)
	}
	return ctx.Err()
}

// clusterTLS is how the members of a cluster talk to each other: kubernetes.pem
// on both sides, of the one CA.
func clusterTLS(l pki.Layout) (*tls.Config, error) {
	pool, err := pki.Pool(l.CA())
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(l.Cert(pki.NameKubernetes), l.Key(pki.NameKubernetes))
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, nil
}

// removeID asks etcd, again while it is not content yet.
func (m *members) removeID(ctx context.Context, server *embed.Etcd, hex string) error {
	id, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		return fmt.Errorf("member ID %q: %w", hex, err)
	}
	return settled(ctx, func() error {
		_, err := server.Server.RemoveMember(ctx, id)
		return err
	})
}

// settled repeats a change of the membership that etcd refuses because somebody
// has come or gone within the last five seconds.
func settled(ctx context.Context, change func() error) error {
	for {
		err := change()
		if !errors.Is(err, etcderrors.ErrUnhealthy) {
			return changeError(err)
		}
		select {
		case <-time.After(quorumPoll):
		case <-ctx.Done():
			return changeError(err)
		}
	}
}

// notKnown tells whether a change that failed with err may have been made all the same.
func notKnown(err error) bool {
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

// changeError puts etcd's reasons into other words.
func changeError(err error) error {
	switch {
	case errors.Is(err, etcderrors.ErrUnhealthy), errors.Is(err, etcderrors.ErrNotEnoughStartedMembers):
		return WithHint(errors.New("etcd refuses the change: too few members have been connected for the last five seconds"),
			"kthwd member list shows who is down; bring them back, or remove them first")
	case notKnown(err), errors.Is(err, etcderrors.ErrNoLeader):
		return WithHint(fmt.Errorf("the members did not agree in time: %w", err), "kthwd status says whether there is a quorum; look with kthwd member list before you try again")
	}
	return err
}

// forget deletes what would remind the cluster of a removed member: the join that
// it was to come by, which is an error when it stays, and its API server's place
// among the endpoints of the service kubernetes, which would be there for 15 more
// seconds.
func (m *members) forget(ctx context.Context, gone member.Member) error {
	client, _, done, err := m.client()
	if err != nil {
		return err
	}
	defer done()
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
