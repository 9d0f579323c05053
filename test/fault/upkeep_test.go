package fault

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/etcdspace"
	"kthwd/test/kthwtest"
)

// leastFree is what must be free before kthwd makes room by itself.
const leastFree = 64 << 20

// fillAndFree makes a database with that many free pages, and returns its member.
func fillAndFree(t *testing.T, c *kthwtest.Controller) (m etcdspace.Member) {
	t.Helper()
	client := c.Etcd(t)
	const prefix = "/fill/"
	value := strings.Repeat("x", 1<<20)
	for i := range leastFree>>20 + 16 {
		kthwtest.WaitFor(t, "a write of a MiB", soon, func() error {
			_, err := client.Put(t.Context(), fmt.Sprint(prefix, i), value)
			return err
		})
	}
	kthwtest.WaitFor(t, "the compaction", soon, func() error {
		deleted, err := client.Delete(t.Context(), prefix, clientv3.WithPrefix())
		if err == nil {
			_, err = client.Compact(t.Context(), deleted.Header.Revision, clientv3.WithCompactPhysical())
		}
		return err
	})
	kthwtest.WaitFor(t, "the pages to be free", soon, func() error { // etcd counts them with its next commit
		if m = etcdStatusOf(t, c).Members[0]; m.Free() < leastFree {
			return fmt.Errorf("got %+v", m)
		}
		return nil
	})
	return m
}

// TestSpaceWindow: in its window kthwd makes room by itself, once; outside of it, it does not.
func TestSpaceWindow(t *testing.T) {
	kthwtest.Turn(t, 1)
	const clock = "15:04"
	hours := func(n int) string { return time.Now().Add(time.Duration(n) * time.Hour).Format(clock) }
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--space-window=" + hours(2) + "-" + hours(4)}})
	full := fillAndFree(t, c)
	stop(t, c, syscall.SIGTERM, 0)
	if strings.Contains(c.Log.String(), "room is made") {
		t.Fatalf("room was made outside of the window; log:\n%s", c.Log.Tail(20))
	}

	c = again(t, c, kthwtest.Options{Args: []string{"--space-window=" + hours(-2) + "-" + hours(2)}})
	kthwtest.WaitFor(t, "room", soon, func() error {
		if m := etcdStatusOf(t, c).Members[0]; m.Size > full.Size/2 {
			return fmt.Errorf("got %+v", m)
		}
		if !strings.Contains(c.Log.String(), `msg="etcd's database was defragmented"`) {
			return errors.New("the log does not say so")
		}
		return nil
	})
	key, err := c.Etcd(t).Get(t.Context(), etcdspace.UpkeepKey)
	if err != nil || len(key.Kvs) != 1 || !strings.Contains(string(key.Kvs[0].Value), `"by":"c0"`) {
		t.Errorf("record of the run: got %v, %v", key, err)
	}

	// Once in a window, also after a restart.
	fillAndFree(t, c)
	stop(t, c, syscall.SIGTERM, 0)
	c = again(t, c, kthwtest.Options{Args: []string{"--space-window=" + hours(-2) + "-" + hours(2)}})
	kthwtest.WaitFor(t, "a look", soon, func() error {
		if !strings.Contains(c.Log.String(), "was made in this window already") {
			return errors.New("none yet")
		}
		return nil
	})
	if m := etcdStatusOf(t, c).Members[0]; m.Free() < leastFree {
		t.Errorf("room was made twice in a window: %+v", m)
	}
}
