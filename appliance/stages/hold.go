package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"kthwd/appliance/advice"
)

const (
	holderTTL = 15 // seconds after which another controller may act

	// RecordTimeout bounds one read or write of a state.
	RecordTimeout = 5 * time.Second
)

// Kind names a change for people and in etcd.
type Kind struct {
	What    string // "the encryption key"
	Command string // of its verbs: "kthwd encryption"
	Flags   string // after each verb: "--ca=front-proxy"; empty for none
	Prefix  string // of its keys in etcd: "/kthwd/encryption/"
}

// Verb is the command of a verb.
func (k Kind) Verb(name string) string {
	if k.Flags == "" {
		return k.Command + " " + name
	}
	return k.Command + " " + name + " " + k.Flags
}

// StateKey is the key of the state in etcd.
func (k Kind) StateKey() string { return k.Prefix + "rotation" }

// HolderKey is the key of the controller that acts. It ends with that one's lease.
func (k Kind) HolderKey() string { return k.Prefix + "holder" }

// Hold is the right to act, as long as its lease is kept alive. Release it.
type Hold struct {
	kind     Kind
	session  *concurrency.Session
	revision int64 // at which it was taken
}

// errHeld means that another controller acts.
type errHeld struct {
	kind Kind
	by   string
}

func (e *errHeld) Error() string {
	return fmt.Sprintf("a rotation of %s is being carried on by %s", e.kind.What, e.by)
}

// Hint implements the errors of package advice.
func (e *errHeld) Hint() string {
	return fmt.Sprintf("watch it with %s; if %s has just died, try again after %d seconds", e.kind.Verb("status"), e.by, holderTTL)
}

// ErrLost means that the right to act, or the state, belongs to another controller now.
var ErrLost = errors.New("another controller has taken the rotation over")

// Lost is ErrLost with advice.
func (k Kind) Lost() error { return advice.With(ErrLost, k.Verb("status")+" says which") }

// Take acquires the right to act for the controller of that name. It does not wait for another
// one's lease.
func (k Kind) Take(ctx context.Context, client *clientv3.Client, name string) (*Hold, error) {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(holderTTL))
	if err != nil {
		return nil, fmt.Errorf("lease in etcd: %w", err)
	}
	asked, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	key := k.HolderKey()
	answer, err := client.Txn(asked).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, name, clientv3.WithLease(session.Lease()))).Else(clientv3.OpGet(key)).Commit()
	switch {
	case err != nil:
		_ = session.Close()
		return nil, fmt.Errorf("write %s in etcd: %w", key, err)
	case !answer.Succeeded:
		_ = session.Close()
		by := "another controller"
		if kvs := answer.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
			by = string(kvs[0].Value)
		}
		return nil, &errHeld{k, by}
	}
	return &Hold{k, session, answer.Header.Revision}, nil
}

// Holder names the controller that acts; empty for none.
func (k Kind) Holder(ctx context.Context, client *clientv3.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	answer, err := client.Get(ctx, k.HolderKey())
	if err != nil || len(answer.Kvs) == 0 {
		return "", err
	}
	return string(answer.Kvs[0].Value), nil
}

// Valid holds as long as nobody else may act.
func (h *Hold) Valid() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(h.kind.HolderKey()), "=", h.revision)
}

// Release ends the right to act.
func (h *Hold) Release() { _ = h.session.Close() }

// Save writes a state as JSON, unless it has changed since that revision, or this controller may no
// longer act: that is ErrLost. It sets revision to that of what it has written.
func (h *Hold) Save(ctx context.Context, client *clientv3.Client, state any, revision *int64) error {
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	content, err := json.Marshal(state)
	if err != nil {
		return err
	}
	key := h.kind.StateKey()
	answer, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", *revision), h.Valid()).
		Then(clientv3.OpPut(key, string(content))).Commit()
	switch {
	case err != nil:
		return fmt.Errorf("write %s in etcd: %w", key, err)
	case !answer.Succeeded:
		return h.kind.Lost()
	}
	*revision = answer.Header.Revision
	return nil
}
