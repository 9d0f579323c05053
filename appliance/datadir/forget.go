package datadir

import (
	"errors"
	"io/fs"
	"os"

	"kthwd/appliance/pki"
)

// Forget makes the directory forget its member: etcd's data were moved away,
// and what comes is another one. The caller has the directory's lock.
func Forget(l pki.Layout) error {
	if err := os.Remove(l.Record()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return Sync(l.Dir)
}

// ForgetJoin ends what resume began: at the first start with a quorum, so that whoever did
// not see a join come to its end may give the command again.
func ForgetJoin(l pki.Layout) error {
	err := os.Remove(l.JoinRecord())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, Sync(l.Dir))
}
