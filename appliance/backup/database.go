package backup

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
)

// Target is the member as which a database is restored.
type Target struct {
	Name    string // of the member
	PeerURL string
	Token   string // of the new cluster
	Bump    uint64 // added to the revision; everything before counts as compacted. 0 means neither
}

// restoreDatabase makes a data directory of etcd, of a cluster of one, from a snapshot.
func restoreDatabase(ctx context.Context, file, dir string, t Target) (err error) {
	// etcdutl panics or exits on some damage, on this goroutine.
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%v", v)
		}
	}()
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{}), zapcore.AddSync(io.Discard), zap.FatalLevel), zap.WithFatalHook(zapcore.WriteThenPanic))
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go keepFlushed(ctx, filepath.Join(dir, "member", "snap", "db"))
	return snapshot.NewV3(log).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: t.Name, OutputDataDir: dir, PeerURLs: []string{t.PeerURL},
		InitialCluster: t.Name + "=" + t.PeerURL, InitialClusterToken: t.Token,
		RevisionBump: t.Bump, MarkCompacted: t.Bump > 0,
	})
}

// keepFlushed flushes the file at path over and over, while etcdutl writes it in one piece:
// see archive.Paced.
func keepFlushed(ctx context.Context, path string) {
	var f *os.File
	for ctx.Err() == nil {
		if f == nil {
			f, _ = os.Open(path) // not there yet
		} else {
			_ = unix.Fdatasync(int(f.Fd()))
		}
		time.Sleep(2 * time.Millisecond)
	}
	if f != nil {
		f.Close()
	}
}

const margin = 128 << 20 // etcd allocates two log files of 64 MB

// enoughRoom refuses a directory whose file system has less than need bytes, and a margin.
func enoughRoom(dir string, need int64) error {
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return fmt.Errorf("free space of %s: %w", dir, err)
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < need+margin {
		return advice.With(fmt.Errorf("%s has %d MB free, and %d MB are needed for a moment", dir, free>>20, (need+margin)>>20),
			"make room, or name a directory on a larger disk")
	}
	return nil
}
