package dbcopy

import (
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// ReadFile reads the state of the store in a database's file.
func ReadFile(path string) (s Store, err error) {
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
	err = db.View(func(tx *bbolt.Tx) error { s, err = ReadStore(tx); return err })
	return s, err
}
