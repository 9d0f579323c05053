package observe

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"kthwd/appliance/backup"
	"kthwd/test/kthwtest"
)

// oldBackup lets the record of the last backup say that it was verified two days ago, as
// after two days of failures.
func oldBackup(t *testing.T) scene {
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--backup-every=1h", "--backup-dir=" + t.TempDir()}})
	c.WaitReady(t)
	kthwtest.WaitFor(t, "the first backup of the schedule, which would replace the record", 3*time.Minute, func() error {
		answer, err := c.Etcd(t).Get(t.Context(), backup.RecordKey)
		if err != nil {
			return err
		}
		var r backup.Record
		if len(answer.Kvs) == 0 || json.Unmarshal(answer.Kvs[0].Value, &r) != nil || r.Verified.IsZero() {
			return errors.New("no backup is verified yet")
		}
		return nil
	})
	set := func(verified time.Time) {
		value, err := json.Marshal(backup.Record{At: time.Now(), By: "c0", File: "/backup/c0.kthwd", Verified: verified})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Etcd(t).Put(t.Context(), backup.RecordKey, string(value)); err != nil {
			t.Fatal(err)
		}
	}
	return scene{
		controllers: []*kthwtest.Controller{c},
		make:        func(*server) { set(time.Now().Add(-48 * time.Hour)) },
		mend:        func(*server) { set(time.Now()) },
	}
}
