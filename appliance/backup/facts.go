package backup

import (
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"kthwd/appliance/etcd/dbcopy"
)

// readStore reads the state of the store in a database's file.
func readStore(path string) (s dbcopy.Store, err error) {
	// bbolt panics on a page that is not one.
	defer func() {
		if damage := recover(); damage != nil {
			err = fmt.Errorf("%s: %v", path, damage)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error { s, err = dbcopy.ReadStore(tx); return err })
	return s, err
}
