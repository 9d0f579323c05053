package etcdfiles

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"

	"kthwd/appliance/advice"
)

// RefuseForeign refuses a directory that contains files other than etcd's. Call it before
// etcd makes its own files there.
func RefuseForeign(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == "member" || strings.HasPrefix(entry.Name(), ".") || entry.Name() == "lost+found" {
			continue
		}
		return advice.With(fmt.Errorf("%s holds %q, which is not etcd's", dir, entry.Name()),
			"give etcd a directory of its own with --etcd-data-dir")
	}
	return nil
}

// Check reads etcd's files before etcd does. If etcd cannot read a file, it panics on
// goroutines of its own, where no caller can recover (bbolt/db.go:freepages). It also
// truncates a write-ahead log at the first record that it cannot read, which is right
// for a torn last write and fatal for anything else (storage/wal/repair.go:Repair).
func Check(dir string) error {
	if err := checkBackend(filepath.Join(dir, "member", "snap", "db")); err != nil {
		return err
	}
	return checkWAL(filepath.Join(dir, "member", "wal"))
}

// checkBackend visits every page of the database, as etcd does at its start.
func checkBackend(path string) (err error) {
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		return nil // not made yet; etcd reports every other error
	}
	// Mapping a database that is too short would reach beyond its end.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%s: %v", path, v)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(_, _ []byte) error { return nil })
		})
	})
}

// Logs returns the paths of the files of the write-ahead log in dir, in their order; none
// if there is no such directory. The directory's own name may contain any character.
func Logs(dir string) ([]string, error) {
	names, err := fs.Glob(os.DirFS(dir), "*.wal")
	for i := range names {
		names[i] = filepath.Join(dir, names[i])
	}
	return names, err
}

// checkWAL reads the last file of the write-ahead log, the one that etcd may truncate.
func checkWAL(dir string) error {
	names, err := Logs(dir)
	if err != nil || len(names) == 0 {
		return err
	}
	last := slices.Max(names)
	f, err := os.Open(last)
	if err != nil {
		return err
	}
	defer f.Close()
	d := wal.NewDecoder(fileutil.NewFileReader(f))
	err = readRecords(d)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && torn(f, d.LastOffset()) {
		return nil
	}
	return fmt.Errorf("%s: at offset %d: %w", last, d.LastOffset(), err)
}

// readRecords reads until io.EOF or the first unreadable record.
func readRecords(d wal.Decoder) error {
	rec := &walpb.Record{}
	for {
		if err := d.Decode(rec); err != nil {
			return err
		}
		if rec.GetType() == wal.CrcType {
			d.UpdateCRC(rec.GetCrc())
		}
	}
}

// largestRecord exceeds every record that etcd writes: a record holds one request, which
// is at most 1.5 MiB unless --max-request-bytes raises that.
const largestRecord = 64 << 20

// torn reports whether the record at offset may be an interrupted write: it is not the
// first record of the file, and its length fits into the file. A disk writes the length,
// eight aligned bytes, completely or not at all.
//
// A record at the end of a file extends the file. On a full disk the file ends inside
// the record, and only the start of the record identifies it.
func torn(f *os.File, offset int64) bool {
	info, err := f.Stat()
	head := make([]byte, 11)
	if _, short := f.ReadAt(head, offset); err != nil || short != nil || offset == 0 {
		return false
	}
	const lengthBits = 1<<56 - 1 // the rest is padding (storage/wal/decoder.go:decodeFrameSize)
	length := int64(binary.LittleEndian.Uint64(head[:8]) & lengthBits)
	if length <= info.Size()-offset-8 {
		return true
	}
	// walpb.Record begins with its type, field 1, and the checksum, field 2.
	begins := head[8] == 1<<3 && int64(head[9]) >= wal.MetadataType && int64(head[9]) <= wal.SnapshotType && head[10] == 2<<3
	return begins && length <= largestRecord
}

// Unusable adds a hint to an error about data that etcd cannot use.
func Unusable(dir string, err error) error {
	err = fmt.Errorf("cannot use the data in %s: %w", dir, err)
	for _, elsewhere := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EACCES, syscall.EPERM} {
		if errors.Is(err, elsewhere) {
			return err // the data are fine, and the caller adds the right hint
		}
	}
	if errors.Is(err, syscall.EFBIG) {
		return advice.With(err, "etcd needs files of 64 MB: raise the limit on file sizes (ulimit -f, LimitFSIZE=)")
	}
	return advice.With(err, "restore a snapshot into this directory, or move it away and let this member join again")
}
