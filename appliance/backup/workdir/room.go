package workdir

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
	"kthwd/appliance/durable"
)

const margin = 128 << 20 // etcd allocates two log files of 64 MB

// EnoughRoom refuses a directory whose file system has less than need bytes, and a margin.
func EnoughRoom(dir string, need int64) error {
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

// SyncTree flushes everything below dir to the disk.
func SyncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, durable.Sync(path))
	})
}
