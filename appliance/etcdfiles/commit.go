package etcdfiles

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// CommitAll marks all entries of the log in dir, a member directory, as committed, up to
// the first one that changes the membership. It returns the number of entries that were
// not committed before. etcd would drop these when it forces a new cluster
// (etcdserver/bootstrap.go), but some may have been acknowledged, because the leader
// learns of a commit before the others do. The rest were never refused, so keeping them
// contradicts no answer.
func CommitAll(dir string) (kept int, err error) {
	lg, walDir := zap.NewNop(), filepath.Join(dir, "wal")
	w, state, entries, err := openLog(lg, walDir)
	if errors.Is(err, io.ErrUnexpectedEOF) && wal.Repair(lg, walDir) { // truncates a torn last write, as etcd does
		w, state, entries, err = openLog(lg, walDir)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", walDir, err)
	}
	defer func() { err = errors.Join(err, w.Close()) }() // Close also syncs
	for _, e := range entries {
		if e.GetIndex() <= state.GetCommit() {
			continue
		}
		if e.GetType() != raftpb.EntryNormal {
			break
		}
		state.Commit = proto.Uint64(e.GetIndex())
		kept++
	}
	if kept == 0 {
		return 0, nil
	}
	return kept, w.Save(state, nil)
}

// openLog opens the log for writing, and returns its last state and its entries.
func openLog(lg *zap.Logger, walDir string) (*wal.WAL, *raftpb.HardState, []*raftpb.Entry, error) {
	begin, err := newestSnapshot(lg, walDir)
	if err != nil {
		return nil, nil, nil, err
	}
	w, err := wal.Open(lg, walDir, begin)
	if err != nil {
		return nil, nil, nil, err
	}
	_, state, entries, err := w.ReadAll()
	if err != nil {
		return nil, nil, nil, errors.Join(err, w.Close())
	}
	return w, state, entries, nil
}

// newestSnapshot returns the position at which etcd would start to read the log: since 3.7
// the newest snapshot that the log records, whichever files of snapshots there are
// (etcdserver/bootstrap.go:recoverSnapshot).
func newestSnapshot(lg *zap.Logger, walDir string) (*walpb.Snapshot, error) {
	recorded, err := wal.ValidSnapshotEntries(lg, walDir)
	if err != nil || len(recorded) == 0 {
		return &walpb.Snapshot{}, err
	}
	return recorded[len(recorded)-1], nil
}
