package datadir

import (
	"errors"
	"io/fs"
	"os"

	"kthwd/appliance/durable"
	"kthwd/appliance/pki"
)

// Forget deletes the directory's record of its member. Call it after etcd's data were
// moved away to make room for another member's. The caller must hold the directory's lock.
func Forget(l pki.Layout) error {
	if err := os.Remove(l.Record()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.Sync(l.Dir)
}

// ForgetJoin deletes the record of a join. Call it at the first start with a quorum: until
// then a user who did not see the join end may repeat the command.
func ForgetJoin(l pki.Layout) error {
	err := os.Remove(l.JoinRecord())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, durable.Sync(l.Dir))
}
