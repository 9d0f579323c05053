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

// fill overwrites one key until etcd refuses writes (C3). A compaction frees what it took.
func fill(t *testing.T, client *clientv3.Client) {
	t.Helper()
	value := strings.Repeat("x", 1<<20)
	kthwtest.WaitFor(t, "etcd to refuse writes", soon, func() error {
		for {
			switch _, err := client.Put(t.Context(), "/incident/fill", value); {
			case errors.Is(err, rpctypes.ErrNoSpace):
				return nil
			case err != nil:
				return err
			}
		}
	})
}

func TestEtcdWithoutSpace(t *testing.T) {
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{fmt.Sprintf("--etcd-arg=quota-backend-bytes=%d", tinyQuota)}})
	fill(t, c.Etcd(t))
	found := look(t, c, incident{
		name: "C3 etcd has no space", kind: "etcd_space",
		cause: "etcd has the alarm NOSPACE", do: "kthwd etcd space",
		bridge: "etcd's database has reached its quota", log: "etcdserver: mvcc: database space exceeded",
	})
	out := shell(t, c, found.Do)
	for _, want := range []string{"before  ", "after   ", "quota 24.0 MiB", "NOSPACE is off"} {
		if !strings.Contains(out, want) {
			t.Errorf("kthwd etcd space: got %s, want %q", out, want)
		}
	}
	healthy(t, c, "etcd_space")

	// Nothing is left to reclaim, and the command says so.
	again, err := exec.Command(kthwtest.Binary(t), "etcd", "space", "--config=", "--data-dir="+c.Dir).CombinedOutput()
	if err == nil || !strings.Contains(string(again), "nothing can be reclaimed") {
		t.Errorf("a second kthwd etcd space: got %v, %s", err, again)
	}
}

// Without a kthwd the command says so at once.
func TestSpaceOfNoMember(t *testing.T) {
	t.Parallel()
	out, err := exec.Command(kthwtest.Binary(t), "etcd", "space", "--config=", "--data-dir="+t.TempDir()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no etcd member runs in") {
		t.Errorf("got %v, %s", err, out)
	}
}
