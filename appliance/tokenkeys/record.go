package tokenkeys

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"maps"
	"reflect"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"k8s.io/client-go/util/keyutil"
)

// recordKey holds the public keys that the cluster has had, by key id.
const recordKey = "/kthwd/token-keys"

// longest is how long a replaced key is kept: the longest life of a token in an API server
// with kthwd's flags, and a month.
const longest = (365 + 31) * 24 * time.Hour

// key is a public key of tokens. All of it is public.
type key struct {
	DER   []byte    `json:"der"`            // SubjectPublicKeyInfo
	Until time.Time `json:"until,omitzero"` // when it was found replaced; zero while it is accepted

	public any
}

// Record adds the keys in the files to the record in etcd, and finds those that are no longer
// accepted. It waits at most five seconds, and refuses nothing: without a record Refused
// counts nothing.
func (w *Watch) Record(ctx context.Context, server *embed.Etcd) {
	client := v3client.New(server.Server)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := w.record(ctx, client, time.Now()); err != nil {
		w.cfg.Log.Debug("the keys of tokens are not recorded", "err", err)
	}
}

func (w *Watch) record(ctx context.Context, client *clientv3.Client, now time.Time) error {
	here, err := w.read()
	if err != nil {
		return err
	}
	answer, err := client.Get(ctx, recordKey)
	if err != nil {
		return err
	}
	known, revision := map[string]key{}, int64(0)
	if len(answer.Kvs) > 0 {
		revision = answer.Kvs[0].ModRevision
		if err := json.Unmarshal(answer.Kvs[0].Value, &known); err != nil {
			return err
		}
	}
	next := merged(known, here, now)
	w.use(next)
	if reflect.DeepEqual(next, known) {
		return nil
	}
	value, err := json.Marshal(next)
	if err != nil {
		return err
	}
	// If another controller has written meanwhile, the next start records the rest.
	_, err = client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(recordKey), "=", revision)).Then(clientv3.OpPut(recordKey, string(value))).Commit()
	return err
}

// merged returns the record with the keys that are accepted here.
func merged(known, here map[string]key, now time.Time) map[string]key {
	next := map[string]key{}
	maps.Copy(next, known)
	for id, k := range next {
		switch _, accepted := here[id]; {
		case accepted:
			continue
		case k.Until.IsZero():
			k.Until = now.UTC().Truncate(time.Second)
			next[id] = k
		case now.Sub(k.Until) > longest:
			delete(next, id)
		}
	}
	maps.Copy(next, here)
	return next
}

// use makes the keys of a record those that Refused looks for.
func (w *Watch) use(record map[string]key) {
	keys := map[string]key{}
	for id, k := range record {
		if public, err := x509.ParsePKIXPublicKey(k.DER); err == nil {
			k.public = public
			keys[id] = k
		}
	}
	for id, k := range keys { // a series that begins at 0 shows the first refusal as an increase
		if k.Until.IsZero() {
			w.count.WithLabelValues(OtherIssuer, id)
		} else {
			w.count.WithLabelValues(ReplacedKey, id)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys = keys
}

// read returns the keys in the files, as the API server reads them.
func (w *Watch) read() (map[string]key, error) {
	all := map[string]key{}
	for _, file := range w.cfg.Files {
		keys, err := keyutil.PublicKeysFromFile(file)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			der, err := x509.MarshalPKIXPublicKey(k)
			if err != nil {
				return nil, err
			}
			all[idOf(der)] = key{DER: der}
		}
	}
	return all, nil
}

// idOf is the key id that the API server writes into the header of a token
// (kubernetes/pkg/serviceaccount/jwt.go: keyIDFromPublicKey).
func idOf(der []byte) string {
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
