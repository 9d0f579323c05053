// Package joins has the records of controllers that are joining the cluster, below /kthwd/joins in
// etcd: what a token is good for, who used it, and whether the new controller has arrived. Any
// controller can continue a join.
//
// A record is trusted only with a controller's seal: an HMAC with a key that all controllers have
// and etcd does not. Without the seal, write access to etcd would be enough to receive the cluster's
// keys. Read returns records with and without one: the caller compares.
package joins

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/etcd"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/supervise"
)

// Prefix is the prefix of the joins in progress. Each has a record and a key with a
// lease, which limits first the lifetime of the token and then the time that the learner
// has to arrive. A lease is used because the clocks of controllers may differ.
const Prefix = "/kthwd/joins/"

// Key is the key of a record.
func Key(id string) string { return Prefix + id }

func validKey(id string) string { return Prefix + id + "/valid" }

func arrivedKey(id string) string { return Prefix + id + "/arrived" }

// Join is the record of one controller's join. A value without a valid seal is not trusted.
type Join struct {
	ID      string        `json:"id"`
	Name    string        `json:"name"`
	Address string        `json:"address"`
	Secret  []byte        `json:"secret"` // hash of the secret
	CAKey   bool          `json:"caKey,omitempty"`
	From    string        `json:"from,omitempty"` // address from which the joiner sends its requests; empty means Address
	TTL     time.Duration `json:"ttlNanoseconds"`
	Lease   int64         `json:"lease"`
	Made    time.Time     `json:"made"`

	// Holder is the joiner that received the files; every other one is refused.
	Holder string `json:"holder,omitempty"`

	// Set once the token is spent: the joiner that spent it, and the learner's peer URL.
	Joiner  string `json:"joiner,omitempty"`
	PeerURL string `json:"peerURL,omitempty"`

	Seal []byte `json:"seal,omitempty"` // see seal.go

	Valid   bool `json:"-"` // the lease has not expired
	Arrived bool `json:"-"` // the learner runs and has the cluster's shared files

	revision int64 // of the record
}

// clocksApart is how far the clocks of two controllers may be apart.
const clocksApart = 10 * time.Minute

// Outlived reports whether the token's time is over by the clock, too. Who can write to etcd can put
// an old record back, with its seal, and grant its lease again; its time is in the seal.
func (j Join) Outlived(now time.Time) bool { return now.Sub(j.Made) > j.TTL+clocksApart }

// Member returns the member that this join created, or nil.
func (j Join) Member(all []*membership.Member) *membership.Member {
	for _, m := range all {
		if j.PeerURL != "" && len(m.PeerURLs) > 0 && m.PeerURLs[0] == j.PeerURL {
			return m
		}
	}
	return nil
}

// Read returns all records, sealed or not, ordered by ID.
func Read(ctx context.Context, client *clientv3.Client, o ...clientv3.OpOption) (all []Join, revision int64, err error) {
	answer, err := client.Get(ctx, Prefix, append(o, clientv3.WithPrefix())...)
	if err != nil {
		return nil, 0, err
	}
	leases := map[string]int64{} // by key; 0 for a key without a lease
	for _, kv := range answer.Kvs {
		leases[string(kv.Key)] = kv.Lease
		id := strings.TrimPrefix(string(kv.Key), Prefix)
		if strings.Contains(id, "/") {
			continue
		}
		j := Join{}
		if err := json.Unmarshal(kv.Value, &j); err != nil || j.ID != id {
			j = Join{ID: id} // not written by a controller
		}
		j.revision = kv.ModRevision
		all = append(all, j)
	}
	for i := range all {
		_, all[i].Arrived = leases[arrivedKey(all[i].ID)]
		all[i].Valid = all[i].Lease != 0 && leases[validKey(all[i].ID)] == all[i].Lease
	}
	return all, answer.Header.Revision, nil
}

// Record writes a new join with a lease of its own, and deletes the replaced joins of
// the same controller.
func (j Join) Record(ctx context.Context, client *clientv3.Client, key []byte, replaced []Join) error {
	lease, err := client.Grant(ctx, int64(j.TTL/time.Second))
	if err != nil {
		return err
	}
	j.Lease, j.Made = int64(lease.ID), time.Now().UTC().Truncate(time.Second)
	j.Seal = j.ComputeSeal(key)
	value, err := json.Marshal(j)
	if err != nil {
		return err
	}
	ops := []clientv3.Op{clientv3.OpPut(Key(j.ID), string(value)), clientv3.OpPut(validKey(j.ID), "", clientv3.WithLease(lease.ID))}
	for _, r := range replaced {
		ops = append(ops, r.deletion()...)
	}
	_, err = client.Txn(ctx).Then(ops...).Commit()
	return err
}

// Update replaces the record, unless it has changed since it was read.
func (j *Join) Update(ctx context.Context, client *clientv3.Client, key []byte) (done bool, err error) {
	j.Seal = j.ComputeSeal(key)
	value, err := json.Marshal(j)
	if err != nil {
		return false, err
	}
	answer, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(Key(j.ID)), "=", j.revision)).
		Then(clientv3.OpPut(Key(j.ID), string(value))).Commit()
	if err != nil || !answer.Succeeded {
		return false, err
	}
	j.revision = answer.Header.Revision
	return true, nil
}

// After lets j replace a later version of its record.
func (j *Join) After(later Join) { j.revision = later.revision }

// deletion returns the operations that delete all keys of a join.
func (j Join) deletion() []clientv3.Op {
	return []clientv3.Op{clientv3.OpDelete(Key(j.ID)), clientv3.OpDelete(validKey(j.ID)), clientv3.OpDelete(arrivedKey(j.ID)),
		clientv3.OpDelete(DialKey(j.ID)), clientv3.OpDelete(ReachKey(j.ID), clientv3.WithPrefix())}
}

// Forget deletes the record of a join that has succeeded or failed.
func (j Join) Forget(ctx context.Context, client *clientv3.Client) error {
	_, err := client.Txn(ctx).Then(j.deletion()...).Commit()
	return err
}

// Arrive records that this learner runs and has the files that controllers share; only
// then does the leader promote it. It waits for a quorum until ctx ends.
func Arrive(ctx context.Context, server *embed.Etcd) {
	client := v3client.New(server.Server)
	defer client.Close()
	for view.Learns(server) && ctx.Err() == nil {
		if tryArrive(ctx, client, server) == nil {
			return
		}
		supervise.Sleep(ctx, etcd.QuorumPoll)
	}
}

// tryArrive is one attempt of Arrive.
func tryArrive(ctx context.Context, client *clientv3.Client, server *embed.Etcd) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	all, _, err := Read(ctx, client) // a learner looks only for its own name, so it needs no seal
	if err != nil {
		return err
	}
	self := server.Server.Cluster().Member(server.Server.MemberID())
	for _, j := range all {
		if self == nil || j.Member([]*membership.Member{self}) == nil {
			continue
		}
		_, err = client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(Key(j.ID)), ">", 0)).
			Then(clientv3.OpPut(arrivedKey(j.ID), "")).Commit()
	}
	return err
}

// Remains returns the time left on the lease; 0 means unknown.
func (j Join) Remains(ctx context.Context, client *clientv3.Client) time.Duration {
	if !j.Valid {
		return 0
	}
	answer, err := client.TimeToLive(ctx, clientv3.LeaseID(j.Lease))
	if err != nil {
		return 0
	}
	return max(time.Duration(answer.TTL)*time.Second, 0)
}
