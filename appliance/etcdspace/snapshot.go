package etcdspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"kthwd/appliance/advice"
	"kthwd/appliance/archive"
)

// Snapshot describes a file of Snapshot.
type Snapshot struct {
	File     string `json:"file"`
	Revision int64  `json:"revision"`
	Keys     int    `json:"keys"` // revisions of keys, as etcdutl counts them
	Size     int64  `json:"sizeBytes"`
	Version  string `json:"storageVersion"`
}

// Snapshot writes the database of the member here to a new file, with mode 0600, in the
// format of etcdctl snapshot save. Only what was verified gets the name: the sum that etcd
// sends along is compared with what the disk returns, and the pages of the database are checked.
func (c *Cluster) Snapshot(ctx context.Context, path string) (s Snapshot, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return s, err
	}
	if _, err := os.Lstat(path); err == nil {
		return s, exists(path)
	}
	part, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".part-*") // mode 0600
	if err != nil {
		return s, err
	}
	defer os.Remove(part.Name())
	err = errors.Join(c.receive(ctx, part), part.Close())
	if err != nil {
		return s, err
	}
	if err := verifySum(part.Name()); err != nil {
		return s, err
	}
	found, err := snapshot.NewV3(zap.NewNop()).Status(part.Name())
	if err != nil {
		return s, fmt.Errorf("the snapshot is damaged: %w", err)
	}
	info, err := os.Stat(part.Name())
	if err != nil {
		return s, err
	}
	s = Snapshot{File: path, Revision: found.Revision, Keys: found.TotalKey, Size: info.Size(), Version: found.Version}
	return s, finalName(part.Name(), path)
}

func exists(path string) error {
	return advice.With(fmt.Errorf("%s exists", path), "name a new file: nothing is replaced")
}

// receive writes the snapshot at a pace that the disk bears: etcd's own writes wait for
// the same disk.
func (c *Cluster) receive(ctx context.Context, part *os.File) error {
	source, err := c.local.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("ask the etcd member for a snapshot: %w", plain(err))
	}
	defer source.Close()
	paced := archive.NewPaced(part)
	_, err = io.Copy(paced, source)
	if err = errors.Join(err, paced.Close()); err != nil {
		return fmt.Errorf("write the snapshot: %w", err)
	}
	return nil
}

// verifySum compares a file with the SHA-256 at its end.
func verifySum(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() <= sha256.Size {
		return errors.New("the snapshot is incomplete: it has no sum")
	}
	sum := sha256.New()
	if _, err := io.CopyN(sum, f, info.Size()-sha256.Size); err != nil {
		return err
	}
	said, err := io.ReadAll(f)
	if err == nil && !bytes.Equal(said, sum.Sum(nil)) {
		err = errors.New("the snapshot is damaged: its sum is another")
	}
	return err
}

// finalName gives a file its name, which nobody else has, and makes that survive a crash.
func finalName(part, path string) error {
	if err := os.Link(part, path); errors.Is(err, fs.ErrExist) {
		return exists(path)
	} else if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
