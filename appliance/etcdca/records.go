package etcdca

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/pki"
)

// The keys of a move. kube-apiserver's are below /registry.
const (
	prefix         = "/kthwd/etcd-ca/"
	caKey          = prefix + "ca"
	requestsPrefix = prefix + "requests/" // followed by a controller's name
)

// record is a value of one of these keys. A value without a valid seal is not trusted.
type record struct {
	Request     []byte `json:"request,omitempty"`     // PKCS #10, DER; empty for the CA
	Certificate []byte `json:"certificate,omitempty"` // DER; empty until it is issued
	Seal        []byte `json:"seal"`

	revision int64
}

// errNoSeal means that something else than a controller has written the record.
var errNoSeal = errors.New("has no controller's seal: something else than kthwd can write to etcd; remove it")

// sealPurpose separates the secret of these seals from others.
const sealPurpose = "etcd CA record"

// seal returns the HMAC over the record and its key, with a secret that all controllers
// have and etcd does not.
func (r record) seal(l pki.Layout, key string) ([]byte, error) {
	secret, err := pki.SharedSecret(l, sealPurpose)
	if err != nil {
		return nil, err
	}
	return r.sealWith(secret, key), nil
}

func (r record) sealWith(secret []byte, key string) []byte {
	const version = 1
	content, _ := json.Marshal([]any{version, key, r.Request, r.Certificate}) // plain values always encode
	mac := hmac.New(sha256.New, secret)
	mac.Write(content)
	return mac.Sum(nil)
}

// parse reads the value of key. A missing value is a record without content.
func parse(l pki.Layout, key string, value []byte) (r record, err error) {
	if len(value) == 0 {
		return record{}, nil
	}
	if err := json.Unmarshal(value, &r); err != nil {
		return record{}, fmt.Errorf("%s in etcd: %w", key, errNoSeal)
	}
	secrets, err := pki.SharedSecrets(l, sealPurpose)
	if err == nil && !slices.ContainsFunc(secrets, func(s pki.Secret) bool { return hmac.Equal(r.sealWith(s.Key, key), r.Seal) }) {
		err = fmt.Errorf("%s in etcd: %w", key, errNoSeal)
	}
	if err != nil {
		return record{}, err
	}
	return r, nil
}

// Reseal gives the records a seal of the key that makes new ones, before a rotation drops the
// one before.
func (m *Mover) Reseal(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	answer, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("read %s in etcd: %w", prefix, err)
	}
	for _, kv := range answer.Kvs {
		key := string(kv.Key)
		r, err := parse(m.layout, key, kv.Value)
		if errors.Is(err, errNoSeal) {
			continue // it is not trusted, and stays so
		}
		if err != nil {
			return err
		}
		r.revision = kv.ModRevision
		done, err := m.put(ctx, client, key, r)
		if err == nil && !done {
			err = errors.New("the move to a CA of etcd's own goes on at this moment")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// recordTimeout bounds one read or write of a record.
const recordTimeout = 5 * time.Second

func (m *Mover) get(ctx context.Context, client *clientv3.Client, key string) (record, error) {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	answer, err := client.Get(ctx, key)
	if err != nil {
		return record{}, fmt.Errorf("read %s in etcd: %w", key, err)
	}
	if len(answer.Kvs) == 0 {
		return record{}, nil
	}
	r, err := parse(m.layout, key, answer.Kvs[0].Value)
	r.revision = answer.Kvs[0].ModRevision
	return r, err
}

// put writes the record, unless it has changed since it was read; done is false then.
func (m *Mover) put(ctx context.Context, client *clientv3.Client, key string, r record) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	if r.Seal, err = r.seal(m.layout, key); err != nil {
		return false, err
	}
	value, err := json.Marshal(r)
	if err != nil {
		return false, err
	}
	answer, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", r.revision)).
		Then(clientv3.OpPut(key, string(value))).Commit()
	if err != nil {
		return false, fmt.Errorf("write %s in etcd: %w", key, err)
	}
	return answer.Succeeded, nil
}

// sign answers the request of a controller, if it has none yet and etcd-ca-key.pem is here.
func (m *Mover) sign(ctx context.Context, client *clientv3.Client, key string, r record) error {
	if len(r.Request) == 0 || len(r.Certificate) > 0 {
		return nil
	}
	cert, err := pki.SignEtcdRequest(m.layout, r.Request)
	if err != nil {
		return err
	}
	r.Certificate = cert
	done, err := m.put(ctx, client, key, r)
	if done {
		m.log.Info("etcd.pem issued for a controller", "name", strings.TrimPrefix(key, requestsPrefix))
	}
	return err
}
