// Package upgrade is the life of an upgrade to another minor of Kubernetes and etcd, and the way
// back.
//
// A controller whose data an older minor has written emulates that minor, so that nothing is
// stored which the older one cannot read. Watch runs in every controller: it keeps the State in
// etcd, tells the member record which versions may run again, and follows the end.
//
//	w := upgrade.New(upgrade.Config{…})   // reads the member record, so before anything writes it
//	w.Admit(ctx, server)                  // at the first quorum, before the API server
//	go w.Run(ctx)
//	w.Remember(server)                    // the record of the member, as it should be now
//
// The verbs look at the whole cluster (Look), judge it (View.Judge, View.MayFinish,
// View.MayGoBack) and act (Finish, Back). Whether a way back is under way is known to etcd
// itself, as its downgrade: so each verb can be repeated at any moment, and none leaves a state
// between two.
package upgrade

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcdfiles"
)

// Key is the key of the State in etcd. It has no controller's seal, unlike a join: nothing secret
// depends on it, and whoever can write to etcd can replace every object of Kubernetes.
const Key = "/kthwd/upgrade"

const recordTimeout = 5 * time.Second

// State is the upgrade that the cluster has begun last, as etcd has it.
type State struct {
	Cluster  string        `json:"cluster"` // ID of etcd's cluster: a restored one does not go on with it
	From     etcdfiles.Ran `json:"from"`
	To       etcdfiles.Ran `json:"to"`
	By       string        `json:"by"` // the controller that wrote it
	Since    time.Time     `json:"since"`
	Finished bool          `json:"finished"` // the older minor may not run again
	// Onward means that the way back was given up: every controller notes that the older minor may
	// not run, before etcd goes on. The next way back takes it away.
	Onward bool `json:"onward,omitempty"`

	revision int64 // of the key; 0 if there is none
}

// fromKube and the three others are the minors, such as 1.36.
func (s State) fromKube() string { return etcdfiles.MinorOf(s.From.Kubernetes) }
func (s State) toKube() string   { return etcdfiles.MinorOf(s.To.Kubernetes) }
func (s State) fromEtcd() string { return etcdfiles.MinorOf(s.From.Etcd) }
func (s State) toEtcd() string   { return etcdfiles.MinorOf(s.To.Etcd) }

// Upgrade is the upgrade of the versions.
func (s State) Upgrade() etcdfiles.Upgrade {
	record := func(r etcdfiles.Ran) etcdfiles.Record {
		return etcdfiles.Record{Kthwd: r.Kthwd, Kubernetes: r.Kubernetes, Etcd: r.Etcd}
	}
	return etcdfiles.Upgrade{From: record(s.From), To: record(s.To), Etcd: s.fromEtcd() != s.toEtcd()}
}

// there reports whether the cluster has begun an upgrade.
func (s State) there() bool { return s.To.Kubernetes != "" }

// open reports whether an upgrade is not finished.
func (s State) open() bool { return s.there() && !s.Finished }

// leadsTo reports whether now is of the minors that the upgrade leads to.
func (s State) leadsTo(now etcdfiles.Record) bool {
	return s.toKube() == etcdfiles.MinorOf(now.Kubernetes) && s.toEtcd() == etcdfiles.MinorOf(now.Etcd)
}

// String is "Kubernetes 1.36 to 1.37, etcd 3.6 to 3.7".
func (s State) String() string {
	u := etcdfiles.Upgrade{
		From: etcdfiles.Record{Kubernetes: s.From.Kubernetes, Etcd: s.From.Etcd},
		To:   etcdfiles.Record{Kubernetes: s.To.Kubernetes, Etcd: s.To.Etcd}, Etcd: s.fromEtcd() != s.toEtcd(),
	}
	return u.String()
}

// ReadState returns the zero State if the cluster with that ID has none.
func ReadState(ctx context.Context, client *clientv3.Client, cluster string, o ...clientv3.OpOption) (s State, err error) {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	answer, err := client.Get(ctx, Key, o...)
	if err != nil {
		return s, fmt.Errorf("read %s in etcd: %w", Key, err)
	}
	if len(answer.Kvs) == 0 {
		return s, nil
	}
	if json.Unmarshal(answer.Kvs[0].Value, &s) != nil || s.Cluster != cluster {
		s = State{} // it is replaced
	}
	s.revision = answer.Kvs[0].ModRevision
	return s, nil
}

// errChanged means that another controller or verb was faster.
var errChanged = advice.With(errors.New("another controller has changed the record of the upgrade meanwhile"), "kthwd upgrade status shows it")

// save replaces the state that was read with the same revision.
func (s State) save(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	answer, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(Key), "=", s.revision)).Then(clientv3.OpPut(Key, string(text))).Commit()
	switch {
	case err != nil:
		return fmt.Errorf("write %s in etcd: %w", Key, err)
	case !answer.Succeeded:
		return errChanged
	}
	return nil
}
