// Package verify finds out whether an archive is good, by restoring it.
//
//	found, err := verify.Verify(ctx, verify.Options{File: file, …})
//
// Verify runs Check.Run in a child process with a memory limit and a low priority: that starts an
// etcd on the restored database, compares it with the manifest, and opens what is encrypted with the
// archived keys. The child is this program, run as Options.Checker.
package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"filippo.io/age"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/archive"
	"kthwd/appliance/backup/etcdrestore"
	"kthwd/appliance/backup/step"
	"kthwd/appliance/backup/workdir"
	"kthwd/appliance/etcd/dbcopy"
	"kthwd/appliance/etcd/embedded"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
)

// Check is one verification of an archive.
type Check struct {
	File       string
	Identities []age.Identity
	Dir        string       // empty; it receives the restored database, and the caller deletes it
	Kthwd      string       // version of this program
	Log        *slog.Logger // etcd's lines
	Report     func(step.Event)
}

// Verified is what a verification has found.
type Verified struct {
	Manifest     archive.Manifest `json:"manifest"`
	Size         int64            `json:"size"` // of the archive
	Encrypted    bool             `json:"encrypted"`
	Hash         uint32           `json:"hash"`                // etcd's HashKV of the restored store
	Decrypted    map[string]int   `json:"decrypted,omitempty"` // objects that the archived key has opened, by resource
	Certificates int              `json:"certificates"`        // certificates and kubeconfigs that were opened
	NotChecked   []string         `json:"notChecked,omitempty"`
	Lacks        []string         `json:"lacks,omitempty"` // see MissingKeys
}

// Run restores the archive into a temporary etcd, and compares what is in there with the
// manifest. It needs three times the size of the database on the disk of c.Dir. Damage is
// an *archive.Damaged error.
//
// It is for a process of its own: damage that only etcd finds can end the process.
func (c Check) Run(ctx context.Context) (v Verified, err error) {
	defer func() { err = notDamage(c.File, err) }()
	a, err := archive.Open(c.File, c.Identities...)
	if err != nil {
		return v, err
	}
	defer a.Close()
	v.Manifest, v.Size, v.Encrypted, v.Lacks = a.Manifest, a.Size, a.Encrypted, archive.MissingKeys(a.Manifest)
	if err := Fits(a, c.Kthwd); err != nil {
		return v, err
	}
	if err := workdir.EnoughRoom(c.Dir, 2*a.Manifest.Database().Size); err != nil {
		return v, err
	}
	files := filepath.Join(c.Dir, "files")
	if err := os.Mkdir(files, 0o700); err != nil {
		return v, err
	}
	if err := c.step(step.Extract, a.Size, func(add func(int64)) error { return a.Extract(files, add) }); err != nil {
		return v, err
	}
	restored := filepath.Join(c.Dir, "etcd")
	if err := c.step(step.Restore, 0, func(func(int64)) error { return c.restore(ctx, v.Manifest, files, restored) }); err != nil {
		return v, &archive.Damaged{Path: c.File, Part: archive.Database, Err: err}
	}
	var freed sync.WaitGroup
	freed.Go(func() { _ = archive.Remove(filepath.Join(files, archive.Database)) }) // the caller deletes what is left
	defer freed.Wait()
	if err := c.step(step.Read, 0, func(func(int64)) error { return c.read(ctx, &v, files, restored) }); err != nil {
		return v, err
	}
	return v, c.step(step.Files, 0, func(func(int64)) error { return c.files(&v, files) })
}

// notDamage says of an archive that could not be verified for want of room that it is not damaged.
func notDamage(file string, err error) error {
	d, ok := errors.AsType[*archive.Damaged](err)
	// Not every part of etcd and Kubernetes keeps the error of the system.
	if !ok || !errors.Is(d.Err, syscall.ENOSPC) && !errors.Is(d.Err, syscall.EDQUOT) && !strings.Contains(d.Err.Error(), syscall.ENOSPC.Error()) {
		return err
	}
	return &step.Error{Step: step.Of(err), Err: advice.With(fmt.Errorf("%s cannot be verified: %w", file, d.Err), "make room, or name a directory on a larger disk")}
}

// Fits refuses an archive of a version that this program cannot follow.
func Fits(a *archive.Archive, kthwd string) error {
	was := recordOf(a.Manifest)
	return was.Follows(etcdfiles.Versions(kthwd), "the cluster in "+a.Path, "an archive of before the upgrade can be restored with this one")
}

// step reports the beginning and the end of a step.
func (c Check) step(name string, total int64, do func(add func(int64)) error) error {
	return step.Run(c.Report, name, total, do)
}

// restore restores the database that was extracted, and compares its state with the manifest.
func (c Check) restore(ctx context.Context, m archive.Manifest, files, restored string) error {
	extracted := filepath.Join(files, archive.Database)
	if err := etcdrestore.Run(ctx, extracted, restored, etcdrestore.Target{Name: "verify", PeerURL: "http://localhost:2380", Token: "verify"}); err != nil {
		return err
	}
	s, err := dbcopy.ReadFile(extracted)
	if err == nil && (s.Revision != m.Revision || s.Compacted != m.CompactRevision) {
		err = fmt.Errorf("its revision is %d, compacted up to %d, and the manifest says %d and %d", s.Revision, s.Compacted, m.Revision, m.CompactRevision)
	}
	return err
}

// read starts etcd on the restored data, and compares the store with the manifest.
func (c Check) read(ctx context.Context, v *Verified, files, restored string) error {
	damaged := func(format string, args ...any) error {
		return &archive.Damaged{Path: c.File, Part: archive.Database, Err: fmt.Errorf(format, args...)}
	}
	if err := etcdfiles.Check(restored); err != nil {
		return damaged("%w", err)
	}
	e, err := embedded.OpenOffline(ctx, "verify", restored, true, c.Log)
	if err != nil {
		return damaged("etcd does not start on it: %w", err)
	}
	defer e.Close()
	m := v.Manifest
	// Leases may end while this runs, so the store is read at the revision of the manifest.
	if rev := e.Server.KV().Rev(); rev < m.Revision {
		return damaged("its revision is %d, and the manifest says %d", rev, m.Revision)
	}
	hash, _, err := e.Server.KV().HashStorage().HashByRev(m.Revision)
	if err != nil {
		return damaged("hash at revision %d: %w", m.Revision, err)
	}
	if v.Hash = hash.Hash; m.Hash != 0 && hash.CompactRevision == m.CompactRevision && hash.Hash != m.Hash {
		return damaged("the hash of its keys is %08x, and that of the running member was %08x", hash.Hash, m.Hash)
	}
	count, err := e.Server.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true, Revision: m.Revision, Serializable: true})
	if err != nil {
		return damaged("%w", err)
	}
	if count.Count != m.Keys {
		return damaged("it has %d keys at revision %d, and the manifest says %d", count.Count, m.Revision, m.Keys)
	}
	return c.decrypt(ctx, v, e, files)
}

// sample is how many objects of a resource are decrypted.
const sample = 20

// decrypt opens a sample of each resource that is encrypted in the store, with the keys of the archive.
func (c Check) decrypt(ctx context.Context, v *Verified, e *embedded.Offline, files string) error {
	encrypted, err := encryptedObjects(ctx, e, v.Manifest)
	if err != nil || len(encrypted) == 0 {
		return err
	}
	path := pki.Layout{Dir: files}.EncryptionConfig()
	if v.Manifest.Find(archive.FilesDir+filepath.Base(path)) == nil {
		v.NotChecked = append(v.NotChecked, fmt.Sprintf("encrypted %s: %s is not in the archive", strings.Join(slices.Sorted(maps.Keys(encrypted)), ", "), filepath.Base(path)))
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keys, err := loadKeys(ctx, path)
	if err != nil {
		return &archive.Damaged{Path: c.File, Part: filepath.Base(path), Err: err}
	}
	v.Decrypted = map[string]int{}
	for _, resource := range slices.Sorted(maps.Keys(encrypted)) {
		for _, kv := range encrypted[resource] {
			if bytes.HasPrefix(kv.value, []byte(kmsPrefix)) {
				continue
			}
			if err := keys.open(ctx, kv.key, kv.value); err != nil {
				return advice.With(fmt.Errorf("%s: %s in it does not open %s: %w", c.File, filepath.Base(path), kv.key, err),
					"the running API server may use another file, or the object was written with a key that is gone: kubectl get --raw reads it if not")
			}
			v.Decrypted[resource]++
		}
		if v.Decrypted[resource] == 0 {
			delete(v.Decrypted, resource)
			v.NotChecked = append(v.NotChecked, fmt.Sprintf("encrypted %s: they need the key management service %s", resource, strings.Join(v.Manifest.KMS, ", ")))
		}
	}
	return nil
}

// object is one key of etcd.
type object struct {
	key   string
	value []byte
}

const (
	encryptedPrefix = "k8s:enc:" // of every encrypted value (apiserver/pkg/server/options/encryptionconfig)
	kmsPrefix       = "k8s:enc:kms:"
)

// encryptedObjects returns a sample of the encrypted objects of each resource. It reads the
// first keys of each resource, and jumps to the next.
func encryptedObjects(ctx context.Context, e *embedded.Offline, m archive.Manifest) (map[string][]object, error) {
	found := map[string][]object{}
	root := strings.TrimRight(m.Prefix, "/") + "/"
	end := []byte(clientv3.GetPrefixRangeEnd(root))
	for key := []byte(root); ; {
		r, err := e.Server.Range(ctx, &pb.RangeRequest{Key: key, RangeEnd: end, Limit: sample, Revision: m.Revision, Serializable: true})
		if err != nil || len(r.Kvs) == 0 {
			return found, err
		}
		prefix := resourcePrefix(root, string(r.Kvs[0].Key))
		resource := strings.Trim(strings.TrimPrefix(prefix, root), "/")
		for _, kv := range r.Kvs {
			if strings.HasPrefix(string(kv.Key), prefix) && bytes.HasPrefix(kv.Value, []byte(encryptedPrefix)) {
				found[resource] = append(found[resource], object{string(kv.Key), kv.Value})
			}
		}
		key = []byte(clientv3.GetPrefixRangeEnd(prefix))
	}
}

// resourcePrefix returns the prefix of the objects of a resource: /registry/RESOURCE/, or
// /registry/GROUP/RESOURCE/ for a group with a dot in its name.
func resourcePrefix(root, key string) string {
	words := strings.Split(strings.TrimPrefix(key, root), "/")
	n := 1
	if strings.Contains(words[0], ".") && len(words) > 2 {
		n = 2
	}
	if len(words) <= n {
		return key
	}
	return root + strings.Join(words[:n], "/") + "/"
}

// files opens each certificate and kubeconfig.
func (c Check) files(v *Verified, dir string) error {
	all, err := pki.List(pki.Layout{Dir: dir})
	if err != nil {
		return err
	}
	var problems []error
	for _, e := range all {
		name := filepath.Base(e.File)
		if e.Problem != "" && v.Manifest.Problems[name] != e.Problem {
			problems = append(problems, &archive.Damaged{Path: c.File, Part: name, Err: errors.New(e.Problem)})
			continue
		}
		v.Certificates++
		if left := time.Until(e.NotAfter); !e.NotAfter.IsZero() && left < 0 {
			v.NotChecked = append(v.NotChecked, fmt.Sprintf("%s has expired, on %s", name, e.NotAfter.UTC().Format(time.DateOnly)))
		}
	}
	return errors.Join(problems...)
}

// recordOf returns the versions and the IDs of an archive as a member record has them.
func recordOf(m archive.Manifest) etcdfiles.Record {
	return etcdfiles.Record{Cluster: m.Cluster, Member: m.Member, Kthwd: m.Kthwd, Kubernetes: m.Kubernetes, Etcd: m.Etcd}
}
