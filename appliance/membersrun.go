package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"kthwd/appliance/config"
	"kthwd/appliance/member"
	"kthwd/appliance/pki"
	"kthwd/appliance/supervise"
)

const nameMembers = "members"

var _ supervise.Component = (*members)(nil)

// Name implements supervise.Component.
func (m *members) Name() string { return nameMembers }

// Run implements supervise.Component. While another controller may join, it keeps
// the join endpoint open; while this member leads etcd, it makes a voter of each
// learner that has caught up, and gives up on those that do not come. At other
// times it does nothing but watch.
func (m *members) Run(ctx context.Context, ready func()) error {
	client, server, done, err := m.client()
	if err != nil {
		return err
	}
	defer done()
	defer m.endpoint.close()
	ready()
	for ctx.Err() == nil {
		if err := m.follow(ctx, client, server); err != nil && ctx.Err() == nil {
			m.log.Debug("joins not followed", "err", err)
			sleep(ctx, time.Second)
		}
	}
	return nil
}

// joinPoll is how often a join that is under way is looked at.
const joinPoll = 500 * time.Millisecond

// follow acts on the joins after each change and, while there are any, at each tick.
func (m *members) follow(ctx context.Context, client *clientv3.Client, server *embed.Etcd) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pending, revision, err := m.joins(ctx, client, clientv3.WithSerializable())
	if err != nil {
		return err
	}
	changes := client.Watch(ctx, joinsPrefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	for {
		m.act(ctx, client, server, pending)
		again := m.passOn(ctx, server)
		var soon <-chan time.Time // never, at most times: an idle process is not woken for nothing
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

// passOn gives leadership to another member as long as this one has the timing of a
// lone one, which it keeps until it is started again. It returns true when it is to
// be called again.
func (m *members) passOn(ctx context.Context, server *embed.Etcd) (again bool) {
	if !m.etcd.hasty() || voters(server) < 2 || server.Server.Leader() != server.Server.MemberID() {
		return false
	}
	if !m.passedOn {
		m.passedOn = true
		m.log.Info("etcd has the timing of a lone member here until the next start: another one is to lead")
	}
	m.etcd.handOver(ctx, server, slog.LevelInfo)
	return true
}

// act opens or closes the endpoint and, on the leader, brings joins to an end.
func (m *members) act(ctx context.Context, client *clientv3.Client, server *embed.Etcd, pending []join) {
	if len(pending) == 0 {
		m.endpoint.close()
		return
	}
	_ = m.endpoint.open() // it says why not, once
	if server.Server.Leader() != server.Server.MemberID() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for _, j := range pending {
		over, err := m.advance(ctx, server, j)
		if err == nil && over {
			err = j.forget(ctx, client)
		}
		if err != nil {
			m.log.Debug("join not advanced", "name", j.Name, "err", err)
		}
	}
}

// advance brings one join further. It is over when the controller votes, or when
// it has not come in time.
func (m *members) advance(ctx context.Context, server *embed.Etcd, j join) (over bool, err error) {
	learner := j.member(server.Server.Cluster().Members())
	switch {
	case learner == nil && !j.valid:
		m.log.Info("the token has expired", "name", j.Name, "address", j.Address)
		return true, nil
	case learner == nil:
		return false, nil
	case !learner.IsLearner:
		return true, nil
	case j.arrived && activePeers(server.Server.MemberID())[learner.ID.String()]:
		if err := m.promote(ctx, server, learner, j); err == nil || !errors.Is(err, etcderrors.ErrLearnerNotReady) {
			return err == nil, err
		}
	}
	if j.valid {
		return false, nil
	}
	if err := m.removeID(ctx, server, learner.ID.String()); err != nil {
		return false, err
	}
	m.log.Warn("a controller did not arrive in time and is no member any more", "name", j.Name, "address", j.Address)
	return true, nil
}

// promote makes a voter of a learner that has caught up.
func (m *members) promote(ctx context.Context, server *embed.Etcd, learner *membership.Member, j join) error {
	_, err := server.Server.PromoteMember(ctx, uint64(learner.ID))
	if err != nil {
		return err
	}
	m.log.Info("learner has caught up and votes now", "name", j.Name, "address", j.Address, "members", voters(server))
	return nil
}

// maxTTL is how long a token may be good for: it is a key to everything.
const maxTTL = 24 * time.Hour

// addRequest is kthwd member add.
func (m *members) addRequest(r *http.Request) (any, error) {
	var in member.AddRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&in); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), changeTimeout)
	defer cancel()
	return m.add(ctx, in)
}

// add makes a token for a further controller. The membership does not change.
func (m *members) add(ctx context.Context, in member.AddRequest) (member.Added, error) {
	client, _, done, err := m.client()
	if err != nil {
		return member.Added{}, err
	}
	defer done()
	l, err := m.list(ctx)
	if err != nil {
		return member.Added{}, err
	}
	if err := m.mayAdd(l, in); err != nil {
		return member.Added{}, err
	}
	key, err := m.sealKey()
	if err != nil {
		return member.Added{}, err
	}
	pin, _, err := pki.Pin(m.layout)
	if err != nil {
		return member.Added{}, err
	}
	token, err := member.NewToken(pin, m.joinAddresses(l))
	if err != nil {
		return member.Added{}, err
	}
	if err := m.endpoint.open(); err != nil {
		return member.Added{}, err
	}
	pending, _, err := m.joins(ctx, client)
	if err != nil {
		return member.Added{}, changeError(err)
	}
	j := join{ID: token.ID, Name: in.Name, Address: in.Address, From: in.From, Secret: token.Hash(), CAKey: in.CAKey, TTL: in.TTL}
	if err := j.record(ctx, client, key, slices.DeleteFunc(pending, func(p join) bool { return p.Name != in.Name })); err != nil {
		return member.Added{}, changeError(err)
	}
	m.log.Info("token made for a further controller", "name", in.Name, "address", in.Address, "ttl", in.TTL)
	return member.Added{Token: token.String(), Warnings: m.addWarnings(l, in)}, nil
}

func (m *members) mayAdd(l member.List, in member.AddRequest) error {
	if _, err := config.ParseMember(in.Name, in.Address); err != nil {
		return err
	}
	if in.TTL < time.Second || in.TTL > maxTTL {
		return fmt.Errorf("a token cannot be good for %v: want %v to %v", in.TTL, time.Second, maxTTL)
	}
	if _, err := netip.ParseAddr(in.From); in.From != "" && err != nil {
		return fmt.Errorf("%q is no address that a controller could come from: want an IP address", in.From)
	}
	new, own := netip.MustParseAddr(in.Address), netip.MustParseAddr(m.cfg.AdvertiseAddress)
	switch {
	case own.IsLoopback() && !new.IsLoopback():
		return WithHint(fmt.Errorf("this controller's own address %s is loopback, which no other machine reaches", own),
			"a controller that others join needs --advertise-address with an address of its network from its first start on")
	case new.IsLoopback() && !own.IsLoopback():
		return WithHint(fmt.Errorf("%s is loopback, which this controller cannot reach on another machine", new), "give the address of the new machine")
	}
	if in.CAKey && !fileExists(m.layout.CAKey()) {
		return fmt.Errorf("this controller has no key of the CA to give: %s is missing", m.layout.CAKey())
	}
	return l.MayAdd(in.Name, in.Address)
}

// joinAddresses are where the joiner asks: here first, for this one has just
// opened its port.
func (m *members) joinAddresses(l member.List) (all []string) {
	for _, v := range l.Voters() {
		address := net.JoinHostPort(v.Address, strconv.Itoa(m.cfg.JoinPort))
		if v.Self {
			all = slices.Insert(all, 0, address)
		} else {
			all = append(all, address)
		}
	}
	return slices.Compact(all)
}

func (m *members) addWarnings(l member.List, in member.AddRequest) (lines []string) {
	coming := len(l.Voters()) + 1
	for _, o := range l.Members {
		if o.Role != member.Voter && o.Name != in.Name {
			coming++
		}
	}
	for _, w := range config.EvenWarning(coming) {
		lines = append(lines, "with "+in.Name+", "+w)
	}
	switch has := fileExists(m.layout.CAKey()); {
	case !has:
		lines = append(lines, fmt.Sprintf("this controller has no ca-key.pem: run this on one that has it, or give the new data directory its kubernetes.pem before the join; kthwd pki controller %s %s makes it where the key is", in.Name, in.Address))
	case !in.CAKey:
		lines = append(lines, fmt.Sprintf("%s does not get ca-key.pem, so kube-controller-manager there signs no certificates; --with-ca-key gives it", in.Name))
	}
	return lines
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
