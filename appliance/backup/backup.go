// Package backup makes archives of a running cluster, on a schedule if there is one, and restores a
// cluster from one.
//
//	made, err := backup.Create(ctx, backup.Options{Layout: layout, Dir: dir, …})
//
// Create copies the database of the running member and every file that a controller needs into
// an archive, and lets package verify restore the result. Only an archive that
// has passed gets its final name, so a crash at any moment leaves hidden directories, which
// the next Create in the same directory removes.
//
// Package archive has the format. The package never changes the cluster, except for one
// key, RecordKey, which says when the last backup was made.
package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/archive"
	"kthwd/appliance/backup/step"
	"kthwd/appliance/backup/verify"
	"kthwd/appliance/backup/workdir"
	"kthwd/appliance/datadir"
	"kthwd/appliance/durable"
	"kthwd/appliance/etcd/dbcopy"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/etcdsocket"
	"kthwd/appliance/pki"
)

// Options is the input of Create.
type Options struct {
	Layout     pki.Layout
	Dir        string // of the archives; made if it is missing
	Recipients []age.Recipient
	PlainKeys  bool // put the secrets into an archive that is not encrypted
	Kthwd      string
	Name       string              // of this controller
	Address    string              // at which other machines reach it
	Server     string              // URL of its API server for clients on this machine
	Prefix     string              // of kube-apiserver's keys in etcd
	Settings   []byte              // a configuration file with the settings in force
	Args       map[string][]string // the programs' command lines
	Checker    verify.Checker
	// Database opens a copy of the running member's database. If it is nil or fails, etcd itself is
	// asked for one, which costs the daemon memory; a copy without its Store costs a further one on the disk.
	Database   func(ctx context.Context) (*Copy, error)
	Unrecorded bool // it is no backup that the cluster shows as its last: the file is on the disk of the data
	Report     func(step.Event)
}

// Created is the result of Create.
type Created struct {
	File     string                   `json:"file"` // its final path
	Verified verify.Verified          `json:"verified"`
	Took     map[string]time.Duration `json:"tookNanoseconds"` // by step
	Warnings []string                 `json:"warnings,omitempty"`

	// Set by the caller of Create, who prunes and runs the hook.
	Pruned    []string `json:"pruned,omitempty"`
	HookError string   `json:"hookError,omitempty"`
}

// largestHashed is the size of a database up to which the running member is asked for its
// hash, during which no write is committed: some 0.7 ms for each MB.
const largestHashed = 64 << 20

// Create makes a verified archive in o.Dir and records it in the cluster. After an error
// nothing of it has a final name.
func Create(ctx context.Context, o Options) (c Created, err error) {
	c.Took = map[string]time.Duration{}
	report := o.Report
	o.Report = func(e step.Event) {
		if c.Took[e.Step] += e.Took; report != nil {
			report(e)
		}
	}
	client, err := etcdsocket.Connect(ctx, o.Layout.EtcdSocket())
	if err != nil {
		return c, err
	}
	defer client.Close()
	status, err := o.before(ctx, client)
	if err != nil {
		return c, err
	}
	if err := datadir.Private(o.Dir); err != nil {
		return c, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return c, err
	}
	stage, err := workdir.New(o.Dir)
	if err != nil {
		return c, err
	}
	defer stage.Remove()
	// The archive, the database that is read from it and the restored one.
	if err := workdir.EnoughRoom(o.Dir, 3*status.DbSize); err != nil {
		return c, err
	}
	m, f, err := o.gather(status)
	if err != nil {
		return c, err
	}
	var database *Copy
	if err := step.Run(o.Report, step.Snapshot, status.DbSize, func(add func(int64)) (err error) {
		database, err = o.open(ctx, client, stage, add)
		return err
	}); err != nil {
		return c, err
	}
	defer database.Close()
	m.Files = append(f.list, archive.File{Name: archive.Database, Size: database.Size, Mode: 0o600, Secret: true})
	if err := compare(ctx, client, database.Store, status, &m); err != nil {
		return c, err
	}
	c.Warnings = warnings(m, o.PlainKeys || len(o.Recipients) > 0)
	return c, o.finish(ctx, client, stage, m, f, database, &c)
}

// before refuses a member whose data are not those of the cluster.
func (o Options) before(ctx context.Context, client *clientv3.Client) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	status, err := client.Status(ctx, client.Endpoints()[0])
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask the etcd member: %w", err)
	case status.IsLearner:
		return nil, advice.With(errors.New("this member is a learner, which may lack what the others have acknowledged"), "make the backup on a member that votes: kthwd member list shows them")
	case status.Leader == 0:
		return nil, advice.With(errors.New("etcd has no leader, so this member may lack what the others have acknowledged"), "kthwd status says which members are missing; without a quorum, copy etcd's directory while kthwd is stopped")
	}
	return status, nil
}

// gather reads the files, and describes the member.
func (o Options) gather(status *clientv3.StatusResponse) (m archive.Manifest, f *files, err error) {
	secrets := o.PlainKeys || len(o.Recipients) > 0
	if f, err = collect(o.Layout, secrets); err != nil {
		return m, nil, err
	}
	f.add(archive.FilesDir+archive.ConfigFile, o.Settings, 0o600, false)
	slices.Sort(f.leftOut)
	v := etcdfiles.Versions(o.Kthwd)
	m = archive.Manifest{
		Format: archive.Format, Created: time.Now().UTC().Truncate(time.Second), Kthwd: v.Kthwd, Kubernetes: v.Kubernetes, Etcd: v.Etcd,
		Name: o.Name, Address: o.Address, Server: o.Server, Prefix: o.Prefix, Secrets: secrets, LeftOut: f.leftOut, Outside: outside(o.Layout, o.Args),
		Cluster: fmt.Sprintf("%x", status.Header.ClusterId), Member: fmt.Sprintf("%x", status.Header.MemberId),
		Applied: status.RaftAppliedIndex, Behind: status.RaftIndex - min(status.RaftAppliedIndex, status.RaftIndex),
		Problems: problems(o.Layout, f),
	}
	if data, err := os.ReadFile(o.Layout.EncryptionConfig()); err == nil {
		m.KMS = services(data)
	}
	return m, f, nil
}

// problems are what is wrong with certificates that go into the archive.
func problems(l pki.Layout, f *files) map[string]string {
	all, err := pki.List(l)
	if err != nil {
		return nil
	}
	found := map[string]string{}
	for _, e := range all {
		name := filepath.Base(e.File)
		if _, there := f.content[archive.FilesDir+name]; there && e.Problem != "" {
			found[name] = e.Problem
		}
	}
	return found
}

// compare asks the running member what the store in the copy must have.
func compare(ctx context.Context, client *clientv3.Client, s dbcopy.Store, before *clientv3.StatusResponse, m *archive.Manifest) error {
	m.Revision, m.CompactRevision = s.Revision, s.Compacted
	after, err := client.Status(ctx, client.Endpoints()[0])
	if err != nil {
		return fmt.Errorf("ask the etcd member: %w", err)
	}
	if s.Revision < before.Header.Revision || s.Revision > after.Header.Revision {
		return fmt.Errorf("the copy of the database is of revision %d, and the member had %d before and %d after", s.Revision, before.Header.Revision, after.Header.Revision)
	}
	count, err := client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly(), clientv3.WithRev(s.Revision))
	if err != nil {
		return fmt.Errorf("count the keys at revision %d: %w", s.Revision, err)
	}
	m.Keys = count.Count
	if after.DbSizeInUse <= largestHashed {
		if h, err := client.HashKV(ctx, client.Endpoints()[0], s.Revision); err == nil && h.CompactRevision == s.Compacted {
			m.Hash = h.Hash
		}
	}
	members, err := client.MemberList(ctx)
	if err != nil {
		return fmt.Errorf("list the members: %w", err)
	}
	m.Members = memberNames(members.Members)
	return nil
}

func memberNames(all []*etcdserverpb.Member) (names []string) {
	for _, member := range all {
		for _, peer := range member.PeerURLs {
			names = append(names, member.Name+"="+peer)
		}
	}
	slices.Sort(names)
	return names
}

// finish packs the archive, verifies it, gives it its name and records it.
func (o Options) finish(ctx context.Context, client *clientv3.Client, stage *workdir.Dir, m archive.Manifest, f *files, database *Copy, c *Created) error {
	file, recipients, identity, err := stage.Archive(m), o.Recipients, (*age.X25519Identity)(nil), error(nil)
	if len(recipients) > 0 {
		// A machine cannot read its own archives, so the verification has an identity of its own,
		// which exists in memory, and only until then.
		if identity, err = age.GenerateX25519Identity(); err != nil {
			return err
		}
		recipients = append(slices.Clone(recipients), identity.Recipient())
	}
	if err := step.Run(o.Report, step.Pack, m.Database().Size, func(add func(int64)) error {
		return archive.Write(file, m, func(name string) (io.ReadCloser, error) {
			if name == archive.Database {
				return database.content(add), nil
			}
			return io.NopCloser(bytes.NewReader(f.content[name])), nil
		}, recipients)
	}); err != nil {
		return err
	}
	if err := database.Close(); err != nil { // makes room for the restored one
		return err
	}
	v := verify.Options{File: file, Dir: stage.Path, Checker: o.Checker, Report: o.Report}
	if identity != nil {
		v.Identities = identity.String() + "\n"
	}
	if c.Verified, err = verify.Verify(ctx, v); err != nil {
		return err
	}
	final := filepath.Join(o.Dir, archive.Name(m))
	if err := os.Rename(file, final); err != nil {
		return err
	}
	if err := durable.Sync(o.Dir); err != nil {
		return err
	}
	c.File = final
	if o.Unrecorded {
		return nil
	}
	if err := record(ctx, client, m, *c); err != nil {
		c.Warnings = append(c.Warnings, fmt.Sprintf("the archive is not recorded in the cluster, so status goes on to show the one before: %v", err))
	}
	return nil
}

// warnings are what an operator should know about an archive that is good.
func warnings(m archive.Manifest, secrets bool) (all []string) {
	if !secrets {
		all = append(all, fmt.Sprintf("the archive has no private keys and no encryption-config.yaml (%d files left out): keep a copy of them elsewhere, or encrypt the archive with --recipient", len(m.LeftOut)))
	}
	if lacks := keysElsewhere(m); secrets && len(lacks) > 0 {
		all = append(all, fmt.Sprintf("%s is not on this controller, so it is not in the archive: keep a copy, or make the backup on the controller that has it; without it a restored cluster gives no further controller and no node a certificate", strings.Join(lacks, ", ")))
	}
	for _, path := range m.Outside {
		all = append(all, path+" is used, and is not in the archive: it is outside the data directory")
	}
	for _, name := range slices.Sorted(maps.Keys(m.Problems)) {
		all = append(all, fmt.Sprintf("%s is archived as it is: %s", name, m.Problems[name]))
	}
	for _, name := range m.KMS {
		all = append(all, "a restore needs the key management service "+name)
	}
	return all
}

// keysElsewhere are the MissingKeys that were not left out: the machine has them not. A controller
// that has joined has none.
func keysElsewhere(m archive.Manifest) []string {
	return slices.DeleteFunc(archive.MissingKeys(m), func(name string) bool { return slices.Contains(m.LeftOut, name) })
}

// RecordKey is the key in etcd with the Record of the last backup.
const RecordKey = "/kthwd/backup"

// Record is the last backup of a cluster.
type Record struct {
	At       time.Time                `json:"at"` // of the copy
	By       string                   `json:"by"` // name of the controller that has the file
	File     string                   `json:"file"`
	Size     int64                    `json:"size"`
	Revision int64                    `json:"revision"`
	Verified time.Time                `json:"verified"`
	Took     map[string]time.Duration `json:"tookNanoseconds"` // by step
	Secrets  bool                     `json:"secrets"`         // private keys are in it
	Lacks    []string                 `json:"lacks,omitempty"` // see MissingKeys
}

func record(ctx context.Context, client *clientv3.Client, m archive.Manifest, c Created) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	value, err := json.Marshal(Record{
		At: m.Created, By: m.Name, File: c.File, Size: c.Verified.Size, Revision: m.Revision,
		Verified: time.Now().UTC().Truncate(time.Second), Took: c.Took,
		Secrets: m.Secrets, Lacks: archive.MissingKeys(m),
	})
	if err != nil {
		return err
	}
	_, err = client.Put(ctx, RecordKey, string(value))
	return err
}
