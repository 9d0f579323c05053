package incident

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/test/kthwtest"
)

const tinyQuota = 24 << 20

// fill writes until etcd refuses it (C3): one key again and again, whose old revisions a
// compaction drops, or one key after another.
func fill(t *testing.T, client *clientv3.Client, key func(i int) string) {
	t.Helper()
	value := strings.Repeat("x", 1<<20)
	kthwtest.WaitFor(t, "etcd to refuse writes", soon, func() error {
		for i := 0; ; i++ {
			switch _, err := client.Put(t.Context(), key(i), value); {
			case errors.Is(err, rpctypes.ErrNoSpace):
				return nil
			case err != nil:
				return err
			}
		}
	})
}

func TestEtcdWithoutSpace(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{fmt.Sprintf("--etcd-arg=quota-backend-bytes=%d", tinyQuota)}})
	fill(t, c.Etcd(t), func(int) string { return "/incident/fill" })
	found := look(t, c, incident{
		name: "C3 etcd has no space", kind: "etcd_space",
		cause: "etcd has the alarm NOSPACE", do: "kthwd etcd space --fix",
		bridge: "etcd's database has reached its quota", log: "etcdserver: mvcc: database space exceeded",
	})
	out := typeCommand(t, found.Do)
	for _, want := range []string{"BEFORE", "c0", "NOSPACE is off"} {
		if !strings.Contains(out, want) {
			t.Errorf("kthwd etcd space: got %s, want %q", out, want)
		}
	}
	healthy(t, c, "etcd_space")

	// Data in use cannot be reclaimed: the command says so, and leaves the alarm on. The first
	// files still have gaps between the data.
	for round := range 20 {
		fill(t, c.Etcd(t), func(i int) string { return fmt.Sprintf("/incident/%d/%d", round, i) })
		refused, err := exec.Command(kthwtest.Binary(t), "etcd", "space", "--fix", "--config=", "--data-dir="+c.Dir).CombinedOutput()
		if err == nil {
			continue
		}
		// Which of the two it says depends on the gaps that are left: a few pages may come back,
		// but not enough.
		if !strings.Contains(string(refused), "nothing can be reclaimed") && !strings.Contains(string(refused), "the alarm stays on") {
			t.Errorf("kthwd etcd space without enough to reclaim: got %v, %s", err, refused)
		}
		break
	}
	if alarms, err := c.Etcd(t).AlarmList(t.Context()); err != nil || len(alarms.Alarms) != 1 {
		t.Errorf("the alarms after it: got %v, %v", alarms, err)
	}
	stop(t, c)
}

// Without a kthwd the command says so at once.
func TestSpaceOfNoMember(t *testing.T) {
	kthwtest.Turn(t, 1)
	out, err := exec.Command(kthwtest.Binary(t), "etcd", "space", "--config=", "--data-dir="+t.TempDir()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no etcd member runs in") {
		t.Errorf("got %v, %s", err, out)
	}
}
