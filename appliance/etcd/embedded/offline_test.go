package embedded

import (
	"errors"
	"log/slog"
	"testing"
	"time"
)

// Close waits for no member that has died: a goroutine of etcd's that has ended holds what the
// others wait for.
func TestCloseOfTheDead(t *testing.T) {
	o, err := OpenOffline(t.Context(), "c0", t.TempDir(), true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	tx := o.Server.Backend().BatchTx()
	tx.LockOutsideApply() // as the one that has ended would hold it
	disk := errors.New("no space left on device")
	o.fatal <- disk
	closed := make(chan error, 1)
	go func() { closed <- o.Close() }()
	select {
	case err := <-closed:
		if !errors.Is(err, disk) {
			t.Errorf("got %v, want %v", err, disk)
		}
	case <-time.After(time.Minute):
		t.Error("it waits")
	}
	tx.Unlock()
}
