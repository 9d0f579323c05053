package membership

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
	"kthwd/appliance/supervise"
)

// joinsPrefix is the prefix of the joins in progress. Each has a record and a key with a
// lease, which limits first the lifetime of the token and then the time that the learner
// has to arrive. A lease is used because the clocks of controllers may differ.
const joinsPrefix = "/kthwd/joins/"

func joinKey(id string) string { return joinsPrefix + id }

func validKey(id string) string { return joinsPrefix + id + "/valid" }

func arrivedKey(id string) string { return joinsPrefix + id + "/arrived" }

// join is the record of one controller's join. A value without a valid seal is not trusted.
type join struct {
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

	valid    bool  // the lease has not expired
	arrived  bool  // the learner runs and has the cluster's shared files
	revision int64 // of the record
}

// clocksApart is how far the clocks of two controllers may be apart.
const clocksApart = 10 * time.Minute

// outlived reports whether the token's time is over by the clock, too. Who can write to etcd can put
// an old record back, with its seal, and grant its lease again; its time is in the seal.
func (j join) outlived(now time.Time) bool { return now.Sub(j.Made) > j.TTL+clocksApart }

// member returns the member that this join created, or nil.
func (j join) member(all []*membership.Member) *membership.Member {
	for _, m := range all {
		if j.PeerURL != "" && len(m.PeerURLs) > 0 && m.PeerURLs[0] == j.PeerURL {
			return m
		}
	}
	return nil
}

// readJoins returns all records, sealed or not, ordered by ID.
func readJoins(ctx context.Context, client *clientv3.Client, o ...clientv3.OpOption) (all []join, revision int64, err error) {
	answer, err := client.Get(ctx, joinsPrefix, append(o, clientv3.WithPrefix())...)
	if err != nil {
		return nil, 0, err
	}
	leases := map[string]int64{} // by key; 0 for a key without a lease
	for _, kv := range answer.Kvs {
		leases[string(kv.Key)] = kv.Lease
		id := strings.TrimPrefix(string(kv.Key), joinsPrefix)
		if strings.Contains(id, "/") {
			continue
		}
		j := join{}
		if err := json.Unmarshal(kv.Value, &j); err != nil || j.ID != id {
			j = join{ID: id} // not written by a controller
		}
		j.revision = kv.ModRevision
		all = append(all, j)
	}
	for i := range all {
		_, all[i].arrived = leases[arrivedKey(all[i].ID)]
		all[i].valid = all[i].Lease != 0 && leases[validKey(all[i].ID)] == all[i].Lease
	}
	return all, answer.Header.Revision, nil
}

// record writes a new join with a lease of its own, and deletes the replaced joins of
// the same controller.
func (j join) record(ctx context.Context, client *clientv3.Client, key []byte, replaced []join) error {
	lease, err := client.Grant(ctx, int64(j.TTL/time.Second))
	if err != nil {
		return err
	}
	j.Lease, j.Made = int64(lease.ID), time.Now().UTC().Truncate(time.Second)
	j.Seal = j.computeSeal(key)
	value, err := json.Marshal(j)
	if err != nil {
		return err
	}
	ops := []clientv3.Op{clientv3.OpPut(joinKey(j.ID), string(value)), clientv3.OpPut(validKey(j.ID), "", clientv3.WithLease(lease.ID))}
	for _, r := range replaced {
		ops = append(ops, r.deletion()...)
	}
	_, err = client.Txn(ctx).Then(ops...).Commit()
	return err
}

// update replaces the record, unless it has changed since it was read.
func (j *join) update(ctx context.Context, client *clientv3.Client, key []byte) (done bool, err error) {
	j.Seal = j.computeSeal(key)
	value, err := json.Marshal(j)
	if err != nil {
		return false, err
	}
	answer, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(joinKey(j.ID)), "=", j.revision)).
		Then(clientv3.OpPut(joinKey(j.ID), string(value))).Commit()
	if err != nil || !answer.Succeeded {
		return false, err
	}
	j.revision = answer.Header.Revision
	return true, nil
}

// deletion returns the operations that delete all keys of a join.
func (j join) deletion() []clientv3.Op {
	return []clientv3.Op{clientv3.OpDelete(joinKey(j.ID)), clientv3.OpDelete(validKey(j.ID)), clientv3.OpDelete(arrivedKey(j.ID)),
		clientv3.OpDelete(dialKey(j.ID)), clientv3.OpDelete(reachKey(j.ID), clientv3.WithPrefix())}
}

// forget deletes the record of a join that has succeeded or failed.
func (j join) forget(ctx context.Context, client *clientv3.Client) error {
	_, err := client.Txn(ctx).Then(j.deletion()...).Commit()
	return err
}

// Arrive records that this learner runs and has the files that controllers share; only
// then does the leader promote it. It waits for a quorum until ctx ends.
func Arrive(ctx context.Context, server *embed.Etcd) {
	client := v3client.New(server.Server)
	defer client.Close()
	for etcd.Learns(server) && ctx.Err() == nil {
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
	all, _, err := readJoins(ctx, client) // a learner looks only for its own name, so it needs no seal
	if err != nil {
		return err
	}
	self := server.Server.Cluster().Member(server.Server.MemberID())
	for _, j := range all {
		if self == nil || j.member([]*membership.Member{self}) == nil {
			continue
		}
		_, err = client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(joinKey(j.ID)), ">", 0)).
			Then(clientv3.OpPut(arrivedKey(j.ID), "")).Commit()
	}
	return err
}

// remains returns the time left on the lease; 0 means unknown.
func (j join) remains(ctx context.Context, client *clientv3.Client) time.Duration {
	if !j.valid {
		return 0
	}
	answer, err := client.TimeToLive(ctx, clientv3.LeaseID(j.Lease))
	if err != nil {
		return 0
	}
	return max(time.Duration(answer.TTL)*time.Second, 0)
}
