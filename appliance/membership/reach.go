package membership

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/advice"
	"kthwd/appliance/member"
	"kthwd/appliance/membership/joins"
)

// A member that another one does not reach costs the cluster its tolerance of a fault
// without a sign of it. So every controller dials the joiner before it becomes a member.
// The controller that admits writes a request below the join, which all follow anyway, and
// each of the others writes what it found. An older one does not, and is not waited for
// any longer than a dial takes.

const (
	dialTimeout  = 5 * time.Second
	reachTimeout = dialTimeout + 3*time.Second
)

// othersReach has the other controllers dial the joiner, and refuses it if one of them
// cannot. It waits only for those that take part.
func (m *Members) othersReach(ctx context.Context, client *clientv3.Client, server *embed.Etcd, j joins.Join, peerPort int, joiner string) error {
	wanted := map[string]string{} // names, by the IDs of their members
	active, _ := m.etcd.Participants(server)
	for _, e := range server.Server.Cluster().Members() {
		if id := e.ID.String(); !e.IsLearner && e.ID != server.Server.MemberID() && active[id] {
			wanted[id] = e.Name
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	key, err := m.sealKey()
	if err != nil {
		return err
	}
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // it never fails
	r := joins.DialRequest{Nonce: hex.EncodeToString(nonce), PeerPort: peerPort, Joiner: joins.JoinerHash(joiner)}
	r.Seal = r.ComputeSeal(key, j.ID)
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	answer, err := client.Txn(ctx).Then(
		clientv3.OpDelete(joins.ReachKey(j.ID), clientv3.WithPrefix()),
		clientv3.OpPut(joins.DialKey(j.ID), string(value), clientv3.WithLease(clientv3.LeaseID(j.Lease))),
	).Commit()
	if err != nil {
		return err
	}
	return m.awaitReach(ctx, client, j, r.Nonce, answer.Header.Revision, wanted)
}

// awaitReach collects what the controllers in wanted find, and returns the refusals.
func (m *Members) awaitReach(ctx context.Context, client *clientv3.Client, j joins.Join, nonce string, revision int64, wanted map[string]string) error {
	within, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	var cannot []string
	hint := ""
	for change := range client.Watch(within, joins.ReachKey(j.ID), clientv3.WithPrefix(), clientv3.WithRev(revision+1)) {
		for _, event := range change.Events {
			id := strings.TrimPrefix(string(event.Kv.Key), joins.ReachKey(j.ID))
			var found joins.Reached
			if _, asked := wanted[id]; !asked || json.Unmarshal(event.Kv.Value, &found) != nil || found.Nonce != nonce {
				continue
			}
			delete(wanted, id)
			if found.Error != "" {
				cannot, hint = append(cannot, found.Error), found.Hint
			}
		}
		if len(wanted) == 0 {
			break
		}
	}
	for _, name := range wanted {
		m.log.Warn("a controller does not say whether it reaches the new one: it has an older kthwd, or is starting", "controller", name, "name", j.Name)
	}
	if len(cannot) > 0 {
		return &member.Refusal{Text: strings.Join(cannot, "; "), Advice: hint}
	}
	return ctx.Err()
}

// answerDials dials the joiners of pending joins that another controller asks about.
func (m *Members) answerDials(ctx context.Context, client *clientv3.Client, server *embed.Etcd, pending []joins.Join) {
	for _, j := range pending {
		if !j.Valid || j.PeerURL != "" {
			continue
		}
		if err := m.answerDial(ctx, client, server, j); err != nil {
			m.log.Debug("request to dial a joiner not answered", "name", j.Name, "err", err)
		}
	}
}

func (m *Members) answerDial(ctx context.Context, client *clientv3.Client, server *embed.Etcd, j joins.Join) error {
	answer, err := client.Get(ctx, joins.DialKey(j.ID), clientv3.WithSerializable())
	if err != nil || len(answer.Kvs) == 0 {
		return err
	}
	var r joins.DialRequest
	if err := json.Unmarshal(answer.Kvs[0].Value, &r); err != nil {
		return err
	}
	sealed, err := m.isSealed(r.Seal, func(key []byte) []byte { return r.ComputeSeal(key, j.ID) })
	if err != nil {
		return err
	}
	if !sealed {
		return errors.New("it has no controller's seal")
	}
	if m.dialled == r.Nonce {
		return nil
	}
	m.dialled = r.Nonce
	m.tasks.Go(func() {
		found := joins.Reached{Nonce: r.Nonce, Name: m.cfg.Name}
		peer := "https://" + net.JoinHostPort(j.Address, strconv.Itoa(r.PeerPort))
		if err := m.dialBack(ctx, j, peer, r.Joiner); err != nil {
			found.Error = err.Error()
			found.Hint, _ = advice.Of(err)
		}
		value, err := json.Marshal(found)
		if err == nil {
			_, err = client.Put(ctx, joins.ReachKey(j.ID)+server.Server.MemberID().String(), string(value), clientv3.WithLease(clientv3.LeaseID(j.Lease)))
		}
		if err != nil {
			m.log.Warn("what a dial of the new controller found is not recorded", "name", j.Name, "found", found.Error, "err", err)
		}
	})
	return nil
}

// peersInReach returns the members that take part, for the joiner to dial.
func (m *Members) peersInReach(server *embed.Etcd) (all []member.Peer) {
	active, _ := m.etcd.Participants(server)
	for _, e := range server.Server.Cluster().Members() {
		if e.IsLearner || len(e.PeerURLs) == 0 || e.ID != server.Server.MemberID() && !active[e.ID.String()] {
			continue
		}
		all = append(all, member.Peer{Name: e.Name, URL: e.PeerURLs[0]})
	}
	return all
}
