package etcdfiles

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// CommitAll marks all entries of the log in dir, a member directory, as committed, up to
// the first one that changes the membership. It returns the number of entries that were
// not committed before. etcd would drop these when it forces a new cluster
// (etcdserver/bootstrap.go), but some may have been acknowledged, because the leader
// learns of a commit before the others do. The rest were never refused, so keeping them
// contradicts no answer.
func CommitAll(dir string) (kept int, err error) {
	lg, walDir := zap.NewNop(), filepath.Join(dir, "wal")
	w, state, entries, err := openLog(lg, dir, walDir)
	if errors.Is(err, io.ErrUnexpectedEOF) && wal.Repair(lg, walDir) { // truncates a torn last write, as etcd does
		w, state, entries, err = openLog(lg, dir, walDir)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", walDir, err)
	}
	defer func() { err = errors.Join(err, w.Close()) }() // Close also syncs
	for _, e := range entries {
		if e.Index <= state.Commit {
			continue
		}
		if e.Type != raftpb.EntryNormal {
			break
		}
		state.Commit = e.Index
		kept++
	}
	if kept == 0 {
		return 0, nil
	}
	return kept, w.Save(state, nil)
}

// openLog opens the log for writing, and returns its last state and its entries.
func openLog(lg *zap.Logger, dir, walDir string) (*wal.WAL, raftpb.HardState, []raftpb.Entry, error) {
	begin, err := newestSnapshot(lg, dir, walDir)
	if err != nil {
		return nil, raftpb.HardState{}, nil, err
	}
	w, err := wal.Open(lg, walDir, begin)
	if err != nil {
		return nil, raftpb.HardState{}, nil, err
	}
	_, state, entries, err := w.ReadAll()
	if err != nil {
		return nil, state, nil, errors.Join(err, w.Close())
	}
	return w, state, entries, nil
}

// newestSnapshot returns the position at which etcd would start to read the log.
func newestSnapshot(lg *zap.Logger, dir, walDir string) (walpb.Snapshot, error) {
	valid, err := wal.ValidSnapshotEntries(lg, walDir)
	if err != nil {
		return walpb.Snapshot{}, err
	}
	s, err := snap.New(lg, filepath.Join(dir, "snap")).LoadNewestAvailable(valid)
	if errors.Is(err, snap.ErrNoSnapshot) {
		return walpb.Snapshot{}, nil
	}
	if err != nil {
		return walpb.Snapshot{}, err
	}
	return walpb.Snapshot{Index: s.Metadata.Index, Term: s.Metadata.Term}, nil
}
