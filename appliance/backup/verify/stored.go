package verify

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"kthwd/appliance/advice"
)

// Stored is what the secrets in a database of etcd say of the encryption configuration.
type Stored struct {
	Opened  int // encrypted secrets that the keys have opened
	Plain   int // secrets that are not encrypted
	Service int // secrets that only a key management service opens
}

// OpenStored opens the newest secrets in the database below dir, etcd's member directory, with
// the encryption configuration in config; "" means that there is none. It only reads, and
// no etcd may run on the data. A secret that no key opens is an error.
func OpenStored(ctx context.Context, dir, prefix, config string) (s Stored, err error) {
	path := filepath.Join(dir, "snap", "db")
	// bbolt panics on a page that is not one, and reads beyond the end of a file that was cut short.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if damage := recover(); damage != nil {
			err = fmt.Errorf("%s is damaged: %v", path, damage)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	defer db.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k := keys{}
	if config != "" {
		if k, err = loadKeys(ctx, config); err != nil {
			return s, fmt.Errorf("%s: %w", config, err)
		}
	}
	return s, db.View(func(tx *bbolt.Tx) error { return s.read(ctx, tx, strings.TrimRight(prefix, "/")+"/secrets/", k) })
}

// read looks at the newest values, from the end of the store.
func (s *Stored) read(ctx context.Context, tx *bbolt.Tx, prefix string, k keys) error {
	bucket := tx.Bucket([]byte("key"))
	if bucket == nil {
		return nil
	}
	seen := map[string]bool{}
	c := bucket.Cursor()
	for rev, data := c.Last(); rev != nil && len(seen) < sample && ctx.Err() == nil; rev, data = c.Prev() {
		var kv mvccpb.KeyValue
		if !bytes.Contains(data, []byte(prefix)) || proto.Unmarshal(data, &kv) != nil || !bytes.HasPrefix(kv.Key, []byte(prefix)) || seen[string(kv.Key)] {
			continue
		}
		key := string(kv.Key)
		seen[key] = true
		switch {
		case len(rev) > 17: // deleted (storage/mvcc/revision.go: markedRevBytesLen)
		case !bytes.HasPrefix(kv.Value, []byte(encryptedPrefix)):
			s.Plain++
		case bytes.HasPrefix(kv.Value, []byte(kmsPrefix)):
			s.Service++
		default:
			if err := k.open(ctx, key, kv.Value); err != nil {
				return advice.With(fmt.Errorf("%s cannot be decrypted: %w", key, err), "name the file with the key with which it was written in --encryption-provider-config")
			}
			s.Opened++
		}
	}
	return ctx.Err()
}
