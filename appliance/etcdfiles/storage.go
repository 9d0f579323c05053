package etcdfiles

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// Backend is the part of etcd's database that says which etcd wrote it.
type Backend struct {
	Storage    string // version of the format, such as 3.6.0; "" before etcd 3.6, which began to store it
	Cluster    string // version that the members have agreed on; "" before the first leader
	Consistent uint64 // index of the last entry of the log that is in the database
}

// Version is the version of the etcd that wrote the database; "" before its first leader.
func (b Backend) Version() string {
	if b.Storage != "" {
		return b.Storage
	}
	return b.Cluster
}

// ReadBackend reads the database below dir, etcd's member directory. A directory without one
// is fs.ErrNotExist.
func ReadBackend(dir string) (b Backend, err error) {
	path := filepath.Join(dir, "snap", "db")
	if _, err := os.Stat(path); err != nil {
		return b, err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // see ReadStore
	defer func() {
		if damage := recover(); damage != nil {
			err = fmt.Errorf("%s is damaged: %v", path, damage)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return b, fmt.Errorf("%s: %w", path, err)
	}
	defer db.Close()
	return b, db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket([]byte("meta")) // storage/schema/schema.go
		if meta == nil {
			return fmt.Errorf("%s: not a database of etcd", path)
		}
		b.Storage = string(meta.Get([]byte("storageVersion")))
		if i := meta.Get([]byte("consistent_index")); len(i) == 8 {
			b.Consistent = binary.BigEndian.Uint64(i)
		}
		if cluster := tx.Bucket([]byte("cluster")); cluster != nil {
			b.Cluster = string(cluster.Get([]byte("clusterVersion")))
		}
		return nil
	})
}

// CompareMembership compares the two places in which etcd keeps its members: raft's log and
// snapshots, which etcd obeyed up to 3.5, and the database, which it obeys since 3.6. Bugs of
// etcd up to 3.5.25 let them differ, and members that were removed long ago come back to life
// in 3.6 (etcd.io/blog/2025/zombie_members_upgrade). It only reads. etcdArgs are the user's.
func CompareMembership(l pki.Layout, etcdArgs []program.Arg) error {
	dir := filepath.Join(l.Etcd(), "member")
	stored, _, err := ReadStore(dir)
	if err != nil {
		return err
	}
	b, err := ReadBackend(dir)
	if err != nil {
		return err
	}
	obeyed, err := membersOfLog(dir, walDir(l, etcdArgs), b.Consistent)
	if err != nil {
		return fmt.Errorf("members in the log of etcd: %w", err)
	}
	var differ []string
	for _, m := range stored {
		learner, known := obeyed[m.ID]
		switch {
		case !known:
			differ = append(differ, fmt.Sprintf("%s, %s %s, was removed and is still in the database", m.ID, m.Name, strings.Join(m.PeerURLs, ",")))
		case learner != m.IsLearner:
			differ = append(differ, fmt.Sprintf("%s, %s, is a learner in one place and votes in the other", m.ID, m.Name))
		}
		delete(obeyed, m.ID)
	}
	for id := range obeyed {
		differ = append(differ, id+" is a member, and is not in the database")
	}
	if len(differ) == 0 {
		return nil
	}
	slices.Sort(differ)
	return advice.With(fmt.Errorf("%s is of etcd 3.5, and its members differ between the log and the database: %s; etcd 3.6 would go by the database, and lose its quorum to members that are gone",
		l.Etcd(), strings.Join(differ, "; ")), "run etcd 3.5.26 or a newer 3.5 on every member once, which repairs the database, and etcd 3.6 after it")
}

// tooOld refuses data, of which there is no record, for which now's etcd is too new. etcd would
// open them: its plan of a migration leads over any number of minors (storage/schema/migration.go).
// For data of 3.5, the members are compared as well, because the next minor is 3.6.
func tooOld(l pki.Layout, etcdArgs []program.Arg, now Record) error {
	b, err := ReadBackend(filepath.Join(l.Etcd(), "member"))
	if err != nil {
		return nil // there are none, or Check reads more closely and reports the damage
	}
	steps, known := Steps(b.Version(), now.Etcd)
	if !known || steps <= 1 {
		return nil
	}
	err = advice.With(fmt.Errorf("%s is of etcd %s, and this kthwd has %s: a minor must not be skipped", l.Etcd(), b.Version(), now.Etcd),
		fmt.Sprintf("run etcd %s on every member first, with a snapshot before it: https://etcd.io/docs/latest/upgrades/", NextMinor(b.Version())))
	if IsBefore36(b.Version()) {
		err = errors.Join(err, CompareMembership(l, etcdArgs))
	}
	return err
}

// membersOfLog returns the members at the entry upTo, each with whether it is a learner.
func membersOfLog(dir, walDir string, upTo uint64) (map[string]bool, error) {
	lg, all := zap.NewNop(), map[string]bool{}
	valid, err := wal.ValidSnapshotEntries(lg, walDir)
	if err != nil {
		return nil, err
	}
	begin := &walpb.Snapshot{}
	s, err := snap.New(lg, filepath.Join(dir, "snap")).LoadNewestAvailable(valid)
	switch {
	case err == nil:
		begin.Index, begin.Term = proto.Uint64(s.GetMetadata().GetIndex()), proto.Uint64(s.GetMetadata().GetTerm())
		for _, id := range s.GetMetadata().GetConfState().GetVoters() {
			all[types.ID(id).String()] = false
		}
		for _, id := range s.GetMetadata().GetConfState().GetLearners() {
			all[types.ID(id).String()] = true
		}
	case !errors.Is(err, snap.ErrNoSnapshot):
		return nil, err
	}
	w, err := wal.OpenForRead(lg, walDir, begin)
	if err != nil {
		return nil, err
	}
	_, _, entries, err := w.ReadAll() // closes the files; Close is for a log that is written
	if err != nil {
		return nil, err
	}
	removed := map[string]bool{}
	for _, e := range entries {
		if e.GetType() != raftpb.EntryConfChange || e.GetIndex() > upTo {
			continue
		}
		change := &raftpb.ConfChange{}
		if err := proto.Unmarshal(e.GetData(), change); err != nil {
			return nil, fmt.Errorf("entry %d: %w", e.GetIndex(), err)
		}
		applyChange(all, removed, change)
	}
	return all, nil
}

// applyChange applies a change that etcd has not refused (membership/cluster.go:ValidateConfigurationChange).
func applyChange(all, removed map[string]bool, change *raftpb.ConfChange) {
	id := types.ID(change.GetNodeId()).String()
	_, there := all[id]
	switch change.GetType() {
	case raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode:
		var c struct {
			Promote bool `json:"isPromote"`
		}
		_ = json.Unmarshal(change.GetContext(), &c) // without one it is no promotion
		if !removed[id] && there == c.Promote {
			all[id] = change.GetType() == raftpb.ConfChangeAddLearnerNode
		}
	case raftpb.ConfChangeRemoveNode:
		delete(all, id)
		removed[id] = true
	}
}

// Upgrade is a start of a newer minor over existing data.
type Upgrade struct {
	From, To Record // the versions
	Etcd     bool   // of etcd, and not only of Kubernetes
	Adoption bool   // the data are not kthwd's yet
}

// IsBefore36 reports whether etcd of that version obeyed the members in raft's log, and not
// those in the database.
func IsBefore36(etcd string) bool { return older(etcd, "3.6.0") }

// String is "etcd 3.5 to 3.6" or "Kubernetes 1.36 to 1.37", or both, and "adoption" for neither.
func (u Upgrade) String() string {
	var all []string
	if a, b := MinorOf(u.From.Kubernetes), MinorOf(u.To.Kubernetes); u.From.Kubernetes != "" && a != b {
		all = append(all, "Kubernetes "+a+" to "+b)
	}
	if u.Etcd {
		all = append(all, "etcd "+MinorOf(u.From.Etcd)+" to "+MinorOf(u.To.Etcd))
	}
	if len(all) == 0 && u.Adoption {
		return "adoption"
	}
	return strings.Join(all, ", ")
}

// FindUpgrade returns the upgrade that a start with the versions now would be, or nil. The
// record of the member says which versions ran last; without one, the database which etcd did.
// Data in whose data directory no kthwd has run yet are adopted.
func FindUpgrade(l pki.Layout, now Record) (*Upgrade, error) {
	r, err := ReadRecord(l)
	if err != nil || !l.HasData() {
		return nil, err
	}
	b, errBackend := ReadBackend(filepath.Join(l.Etcd(), "member"))
	if errBackend != nil && !errors.Is(errBackend, fs.ErrNotExist) {
		return nil, nil // Check reads more closely, and reports the damage
	}
	if r == nil {
		r = &Record{Etcd: b.Version()}
	}
	if u := r.Upgrade(now); u != nil {
		u.Adoption = r.adopted(l)
		return u, nil
	}
	if r.adopted(l) {
		return &Upgrade{From: *r, To: now, Adoption: true}, nil
	}
	return nil, nil
}

// adopted reports whether no kthwd has run yet on the data of the record.
func (r Record) adopted(l pki.Layout) bool {
	_, err := os.Lstat(l.InstanceID())
	return r == Record{Etcd: r.Etcd} && errors.Is(err, fs.ErrNotExist)
}

// Upgrade returns the upgrade to the versions now, or nil if neither etcd nor Kubernetes gets a
// newer minor.
func (r Record) Upgrade(now Record) *Upgrade {
	r = r.Latest()
	u := &Upgrade{From: r, To: now, Etcd: older(r.Etcd, now.Etcd)}
	if !u.Etcd && !older(r.Kubernetes, now.Kubernetes) {
		return nil
	}
	return u
}
