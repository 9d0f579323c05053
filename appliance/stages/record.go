package stages

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/pki"
)

// Seals are HMACs over a state, by the ID of the key of service account tokens from which the secret
// of each is derived: only a controller can make one, and one that lacks the newest key believes
// that of another.
type Seals map[string][]byte

// SealsOf computes the seals of a state, without its seals, with each secret that this controller has.
// The purpose keeps them from being those of something else.
func SealsOf(l pki.Layout, purpose string, state any) (Seals, error) {
	secrets, err := pki.SharedSecrets(l, purpose)
	if err != nil {
		return nil, err
	}
	const version = 1
	content, err := json.Marshal([]any{version, state})
	if err != nil {
		return nil, err
	}
	all := Seals{}
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, secret.Key)
		mac.Write(content)
		all[secret.ID] = mac.Sum(nil)
	}
	return all, nil
}

// Match reports whether both have a seal of the same key that is the same.
func (s Seals) Match(other Seals) bool {
	for id, seal := range s {
		if hmac.Equal(seal, other[id]) {
			return true
		}
	}
	return false
}

// Fetch reads the state into a pointer to it, and returns the revision of the key in etcd: 0 before the
// first state. What is no JSON of a state is the error noSeal.
func (k Kind) Fetch(ctx context.Context, client *clientv3.Client, state any, noSeal error, o ...clientv3.OpOption) (revision int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	answer, err := client.Get(ctx, k.StateKey(), o...)
	if err != nil {
		return 0, fmt.Errorf("read %s in etcd: %w", k.StateKey(), err)
	}
	if len(answer.Kvs) == 0 {
		return 0, nil
	}
	if json.Unmarshal(answer.Kvs[0].Value, state) != nil {
		return 0, k.Unsealed(noSeal)
	}
	return answer.Kvs[0].ModRevision, nil
}

// Unsealed is the error noSeal with the key in etcd that it is about.
func (k Kind) Unsealed(noSeal error) error { return fmt.Errorf("%s in etcd %w", k.StateKey(), noSeal) }
