package stages

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"kthwd/appliance/advice"
	"kthwd/appliance/durable"
)

// KeepKey keeps a new key in a file until every controller has it.
func KeepKey(path string, key []byte) error {
	if err := durable.Write(path, key, 0o600); err != nil {
		return advice.With(fmt.Errorf("keep the new key: %w", err), "make the directory writable for kthwd's user")
	}
	return nil
}

// ForgetKey removes that file, if it is there.
func ForgetKey(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ForgetKept removes a file that was kept for a change which another controller has carried on, or which
// has never begun: unless this controller acts, or the file is another one than before.
func (r *Runner) ForgetKept(path string, before fs.FileInfo) {
	r.Idle(func() {
		if now, err := os.Lstat(path); err != nil || !os.SameFile(now, before) {
			return
		}
		if err := ForgetKey(path); err != nil {
			r.cfg.Log.Warn("a file with a key that no rotation needs cannot be removed", "err", err)
			return
		}
		r.cfg.Log.Info("removed the file that was kept for a rotation which has ended", "file", path)
	})
}
