package backup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// store is the state of the store in a database's file.
type store struct {
	revision  int64
	compacted int64 // -1 if the store was never compacted, as etcd says it
}

// readStore reads the revisions from a database without going through it.
func readStore(path string) (s store, err error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	defer db.Close()
	s.compacted = -1
	err = db.View(func(tx *bbolt.Tx) error {
		keys, meta := tx.Bucket([]byte("key")), tx.Bucket([]byte("meta"))
		if keys == nil || meta == nil {
			return errors.New("not a database of etcd")
		}
		// storage/mvcc/revision.go: the main revision comes first, big endian.
		if last, _ := keys.Cursor().Last(); len(last) >= 8 {
			s.revision = int64(binary.BigEndian.Uint64(last))
		}
		if c := meta.Get([]byte("finishedCompactRev")); len(c) >= 8 {
			s.compacted = int64(binary.BigEndian.Uint64(c))
		}
		// As storage/mvcc/kvstore.go:restore does: the last key may be compacted away.
		if c := meta.Get([]byte("scheduledCompactRev")); len(c) >= 8 {
			s.compacted = max(s.compacted, int64(binary.BigEndian.Uint64(c)))
		}
		s.revision = max(s.revision, s.compacted, 1)
		return nil
	})
	return s, err
}
