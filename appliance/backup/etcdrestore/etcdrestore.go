// Package etcdrestore makes a data directory of etcd from a copy of a database, with etcd's own code,
// and brings it to the disk in pieces that the disk bears.
package etcdrestore

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// Target is the member as which a database is restored.
type Target struct {
	Name    string // of the member
	PeerURL string
	Token   string // of the new cluster
	Bump    uint64 // added to the revision; everything before counts as compacted. 0 means neither
}

// Run makes a data directory of etcd, of a cluster of one, from a snapshot.
func Run(ctx context.Context, file, dir string, t Target) (err error) {
	// etcdutl panics or exits on some damage, on this goroutine.
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%v", v)
		}
	}()
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(io.Discard), zap.FatalLevel), zap.WithFatalHook(zapcore.WriteThenPanic))
	ctx, stop := context.WithCancel(ctx)
	var flushed sync.WaitGroup
	flushed.Go(func() { keepFlushed(ctx, filepath.Join(dir, "member", "snap", "db")) })
	defer func() { stop(); flushed.Wait() }()
	return snapshot.NewV3(log).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: t.Name, OutputDataDir: dir, PeerURLs: []string{t.PeerURL},
		InitialCluster: t.Name + "=" + t.PeerURL, InitialClusterToken: t.Token,
		RevisionBump: t.Bump, MarkCompacted: t.Bump > 0,
	})
}

const (
	piece = 1 << 20 // goes to the disk at a time
	ahead = 4 << 20 // bytes that etcdutl may be ahead of the disk

	// syncFlag makes each write to a file wait for the disk: FS_SYNC_FL of the kernel's
	// include/uapi/linux/fs.h, chattr +S.
	syncFlag = 0x8
)

// keepFlushed brings the file at path to the disk in small pieces while etcdutl writes it: see
// archive.Paced. etcdutl copies as fast as memory is, and its first commit flushes what is left:
// so each of its writes waits for the disk while it is too far ahead.
func keepFlushed(ctx context.Context, path string) {
	f, err := os.Open(path)
	for ; err != nil; f, err = os.Open(path) { // not there yet
		if time.Sleep(time.Millisecond); ctx.Err() != nil {
			return
		}
	}
	defer f.Close()
	var done int64
	waits := false
	for ctx.Err() == nil {
		info, err := f.Stat()
		if err != nil {
			break
		}
		left := info.Size() - done
		if slow := left > ahead; slow != waits {
			waits = slow
			setSync(f, waits)
		}
		if left <= 0 {
			time.Sleep(time.Millisecond)
			continue
		}
		n := min(left, piece)
		_ = unix.SyncFileRange(int(f.Fd()), done, n, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		done += n
	}
	if waits {
		setSync(f, false)
	}
}

// setSync sets or clears syncFlag. Where the file system has no such flag, nothing changes.
func setSync(f *os.File, on bool) {
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return
	}
	if flags &^= syncFlag; on {
		flags |= syncFlag
	}
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
}
