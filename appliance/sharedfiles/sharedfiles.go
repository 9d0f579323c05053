// Package sharedfiles compares the files that all controllers must share with the cluster's
// fingerprints of them, which etcd has. With another encryption key an API server would write data
// that no other controller can read.
package sharedfiles

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/etcd"
	"kthwd/appliance/pki"
)

// fingerprintsKey holds the fingerprints of the files that the controllers of a cluster
// share. kube-apiserver's keys are below /registry.
const fingerprintsKey = "/kthwd/fingerprints"

// fingerprints is the value of fingerprintsKey. A file with several keys, as during a rotation, has several
// fingerprints; two controllers match if they share one.
type fingerprints struct {
	Salt  []byte              `json:"salt"`
	Files map[string][]string `json:"files"` // by file name

	// Replaced has the time at which a controller without others began to use other keys
	// than before, by file name.
	Replaced map[string]time.Time `json:"replaced,omitempty"`
}

// Files are those that all controllers share, as far as this one uses them.
type Files struct {
	Layout pki.Layout
	InUse  func(path string) bool // whether this controller uses the file

	// Replaced is called by Check for each file whose keys were replaced by others, also
	// in an earlier start. It may be nil.
	Replaced func(path string, at time.Time)
}

// Check compares the files that all controllers must share with the cluster's
// fingerprints. Call it before an API server uses them: with another encryption key it
// would write data that no other controller can read. It waits for a quorum. In a
// cluster of one, changed files replace the known fingerprints.
func (p *Files) Check(ctx context.Context, server *embed.Etcd, members int, log *slog.Logger) error {
	client := v3client.New(server.Server)
	defer client.Close()
	for {
		done, err := p.compareOnce(ctx, client, members, log)
		if done || ctx.Err() != nil {
			return err
		}
		if err != nil {
			log.Debug("shared files not compared yet", "err", err)
		}
		select {
		case <-time.After(etcd.QuorumPoll):
		case <-ctx.Done():
			return nil
		}
	}
}

// compareOnce is one attempt of Check. done is false if etcd did not answer or another controller wrote
// first.
func (p *Files) compareOnce(ctx context.Context, client *clientv3.Client, members int, log *slog.Logger) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	answer, err := client.Get(ctx, fingerprintsKey)
	if err != nil {
		return false, err
	}
	known, revision := fingerprints{}, int64(0)
	if len(answer.Kvs) > 0 {
		revision = answer.Kvs[0].ModRevision
		if err := json.Unmarshal(answer.Kvs[0].Value, &known); err != nil {
			return true, fmt.Errorf("%s in etcd: %w", fingerprintsKey, err)
		}
	}
	next, misfits, err := known.with(p.Layout, p.InUse)
	switch {
	case err != nil:
		return true, err
	case len(misfits) > 0 && members > 1:
		return true, errors.Join(misfits...)
	case next == nil:
		p.tell(known)
		return true, nil
	}
	for _, m := range misfits {
		log.Warn("a shared file has changed; no other controller has a copy to compare with", "err", m)
	}
	value, err := json.Marshal(next)
	if err != nil {
		return true, err
	}
	put, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(fingerprintsKey), "=", revision)).
		Then(clientv3.OpPut(fingerprintsKey, string(value))).Commit()
	if err == nil && put.Succeeded {
		p.tell(*next)
	}
	return err == nil && put.Succeeded, err
}

// Record tells the cluster the fingerprints of one of the files as it is now, besides the known
// ones. With alone they replace the known ones: a controller that comes back with a key that
// was dropped is no longer admitted.
func (p *Files) Record(ctx context.Context, client *clientv3.Client, path string, alone bool) error {
	name := filepath.Base(path)
	for {
		answer, err := client.Get(ctx, fingerprintsKey)
		if err != nil {
			return fmt.Errorf("read %s in etcd: %w", fingerprintsKey, err)
		}
		if len(answer.Kvs) == 0 {
			return nil // the next start makes them
		}
		known, revision := fingerprints{}, answer.Kvs[0].ModRevision
		if err := json.Unmarshal(answer.Kvs[0].Value, &known); err != nil {
			return fmt.Errorf("%s in etcd: %w", fingerprintsKey, err)
		}
		here, err := pki.Fingerprints(p.Layout, known.Salt)
		if err != nil {
			return err
		}
		if len(here[path]) == 0 || !p.InUse(path) {
			return nil
		}
		if known.Files == nil {
			known.Files = map[string][]string{}
		}
		next := slices.Clone(here[path])
		if !alone {
			next = append(next, known.Files[name]...)
		}
		slices.Sort(next)
		known.Files[name] = slices.Compact(next)
		value, err := json.Marshal(known)
		if err != nil {
			return err
		}
		put, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(fingerprintsKey), "=", revision)).
			Then(clientv3.OpPut(fingerprintsKey, string(value))).Commit()
		if err != nil {
			return fmt.Errorf("write %s in etcd: %w", fingerprintsKey, err)
		}
		if put.Succeeded {
			return nil
		}
	}
}

func (p *Files) tell(f fingerprints) {
	if p.Replaced == nil {
		return
	}
	for name, at := range f.Replaced {
		p.Replaced(filepath.Join(p.Layout.Dir, name), at)
	}
}

// with returns the fingerprints with those of l's files that are in use added, or nil if
// there is nothing to add, and a misfit for each file that has no fingerprint in common
// with the known ones.
func (known fingerprints) with(l pki.Layout, inUse func(path string) bool) (next *fingerprints, misfits []error, err error) {
	next = &fingerprints{Salt: known.Salt, Files: map[string][]string{}, Replaced: maps.Clone(known.Replaced)}
	if len(next.Salt) == 0 {
		next.Salt = make([]byte, 16)
		if _, err := rand.Read(next.Salt); err != nil {
			return nil, nil, err
		}
	}
	for name, prints := range known.Files {
		next.Files[name] = slices.Clone(prints)
	}
	here, err := pki.Fingerprints(l, next.Salt)
	if err != nil {
		return nil, nil, err
	}
	changed := false
	for _, path := range slices.Sorted(maps.Keys(here)) {
		if !inUse(path) {
			continue
		}
		name := filepath.Base(path)
		added := slices.DeleteFunc(slices.Clone(here[path]), func(p string) bool { return slices.Contains(known.Files[name], p) })
		switch {
		case len(added) == 0:
			continue
		case len(known.Files[name]) > 0 && len(added) == len(here[path]):
			misfits = append(misfits, pki.NotShared(path))
			next.Files[name] = here[path]
			if next.Replaced == nil {
				next.Replaced = map[string]time.Time{}
			}
			next.Replaced[name] = time.Now().UTC().Truncate(time.Second)
		default:
			next.Files[name] = append(next.Files[name], added...)
		}
		changed = true
	}
	if !changed {
		return nil, nil, nil
	}
	return next, misfits, nil
}
