package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// withOneCA takes etcd's own CA out of directories that have not started yet, which leaves
// what the guide and an older kthwd make.
func withOneCA(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		l := pki.Layout{Dir: dir}
		for _, path := range []string{l.EtcdCA(), l.EtcdCAKey(), l.Cert(pki.NameEtcd), l.Key(pki.NameEtcd)} {
			if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
	}
}

// retrying writes objects through any controller that answers, for as long as it takes,
// and remembers those that were acknowledged.
type retrying struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu           sync.Mutex
	acknowledged []string
	failed       int
}

func startRetrying(t *testing.T, all []*kthwtest.Controller) *retrying {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &retrying{stop: cancel}
	for i, c := range all {
		client := ownClient(t, c)
		w.done.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("split-%d-%d", i, n)
				one, done := context.WithTimeout(ctx, 10*time.Second)
				_, err := client.CoreV1().ConfigMaps("default").Create(one, configMap(name, nil), metav1.CreateOptions{})
				done()
				w.mu.Lock()
				if err == nil {
					w.acknowledged = append(w.acknowledged, name)
				} else {
					w.failed++
				}
				w.mu.Unlock()
				pause(ctx, 20*time.Millisecond)
			}
		})
	}
	t.Cleanup(func() { cancel(); w.done.Wait() })
	return w
}

// check wants every acknowledged write to be there.
func (w *retrying) check(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	w.stop()
	w.done.Wait()
	list, err := ownClient(t, c).CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, m := range list.Items {
		there[m.Name] = true
	}
	lost := 0
	for _, name := range w.acknowledged {
		if !there[name] {
			lost++
		}
	}
	if lost > 0 || len(w.acknowledged) == 0 {
		t.Errorf("lost %d of %d acknowledged writes", lost, len(w.acknowledged))
	}
	t.Logf("%d acknowledged writes, %d lost, %d attempts failed", len(w.acknowledged), lost, w.failed)
}

// Three controllers with one CA move to a CA of etcd's own under writes, and each is killed
// with SIGKILL in each of its stages instead of being stopped.
func TestSplitEtcdCA(t *testing.T) {
	endToEnd(t, "TestSplitClosesEtcd, in make test, moves one controller")
	kthwtest.Turn(t, 3)
	splitThree(t, makeCluster(t))
}

// The same with the profile cis, with which the API servers reach etcd through TLS, too.
func TestSplitEtcdCAWithCIS(t *testing.T) {
	endToEnd(t, "TestLoneCIS moves one controller")
	kthwtest.Turn(t, 3)
	m := makeCluster(t)
	m.args = append(m.args, "--profile=cis")
	splitThree(t, m)
}

func splitThree(t *testing.T, m *made) {
	var dirs []string
	for i := range 3 {
		dirs = append(dirs, filepath.Join(m.dir, fmt.Sprintf("c%d", i)))
	}
	withOneCA(t, append(dirs, filepath.Join(m.dir, "ca"))...)
	all := m.startAll(t)
	if r := mustStatus(t, all[1]); !findingSays(r, "etcd_ca", "trusts the cluster's CA") {
		t.Errorf("one CA: got the findings %+v", r.Findings)
	}
	refuses(t, all[1], []string{"pki", "split-etcd-ca"}, "the move begins where the keys of CAs are kept", "ca-key.pem is not here")
	moveFile(t, filepath.Join(m.dir, "ca", "ca-key.pem"), filepath.Join(dirs[0], "ca-key.pem"))

	w := startRetrying(t, all[:])
	restarts := 0
	for round := 0; ; round++ {
		if round == 4 {
			t.Fatal("the move does not end")
		}
		over := 0
		for i, dir := range dirs {
			before := pki.StageOf(pki.Layout{Dir: dir})
			plan(t, all[i], before)
			code, out := verb(t, all[i], "pki", "split-etcd-ca")
			if code != 0 {
				t.Fatalf("c%d at stage %d: got exit code %d:\n%s", i, before, code, out)
			}
			if strings.Contains(out, "next  nothing") {
				over++
			}
			after := pki.StageOf(pki.Layout{Dir: dir})
			if after == before {
				continue
			}
			if r := mustStatus(t, all[i]); !findingSays(r, "etcd_ca", "other files than it has started with") {
				t.Errorf("c%d before its restart: got the findings %+v", i, r.Findings)
			}
			if round == 0 && i == 0 {
				refuses(t, all[0], []string{"member", "add", "c3", madeAddress(3)}, "etcd is moving to a CA of its own", "--plan")
			}
			all[i].Signal(t, syscall.SIGKILL)
			all[i].Wait(t, soon)
			all[i] = m.start(t, i)
			all[i].WaitReady(t)
			restarts++
			if restarts == 1 {
				signsNothingForged(t, all[0])
			}
		}
		if over == 3 {
			break
		}
	}
	if restarts != 7 {
		t.Errorf("got %d restarts, want the 7 that the page promises", restarts)
	}
	for i, dir := range dirs {
		if got := pki.StageOf(pki.Layout{Dir: dir}); got != pki.StageOwn {
			t.Errorf("c%d ends at stage %d", i, got)
		}
		if r := mustStatus(t, all[i]); findingSays(r, "etcd_ca", "") {
			t.Errorf("c%d at the end: got the findings %+v", i, r.Findings)
		}
		if _, err := all[i].Etcd(t).Get(t.Context(), "/kthwd/etcd-ca/ca"); err != nil {
			t.Errorf("etcd.pem of c%d at its client port: %v", i, err)
		}
	}
	noKeysInEtcd(t, all[0])
	w.check(t, all[2])
}

func findingSays(r status.Report, kind, text string) bool {
	return slices.ContainsFunc(r.Findings, func(f status.Finding) bool { return f.Kind == kind && strings.Contains(f.Text, text) })
}

// signsNothingForged writes a request into etcd without a controller's seal, as somebody
// who can only write to etcd: it gets no certificate.
func signsNothingForged(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	const key = "/kthwd/etcd-ca/requests/evil"
	request, err := pki.EtcdRequest(pki.Layout{Dir: c.Dir})
	if err != nil {
		t.Fatal(err)
	}
	value, err := json.Marshal(map[string][]byte{"request": request, "seal": make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	etcd := c.Etcd(t)
	if _, err := etcd.Put(t.Context(), key, string(value)); err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, "the forged request to be refused", soon, func() error {
		if !strings.Contains(c.Log.String(), "no etcd.pem issued for a controller") {
			return errors.New("the log does not name it")
		}
		return nil
	})
	if answer, err := etcd.Get(t.Context(), key); err != nil || len(answer.Kvs) != 1 || string(answer.Kvs[0].Value) != string(value) {
		t.Errorf("the forged request: got %+v, %v; want it unanswered", answer, err)
	}
	if _, err := etcd.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

// plan wants --plan to change nothing.
func plan(t *testing.T, c *kthwtest.Controller, before pki.Stage) {
	t.Helper()
	if code, out := verb(t, c, "pki", "split-etcd-ca", "--plan"); code != 0 || strings.Contains(out, "made") || !strings.Contains(out, "next  ") {
		t.Errorf("--plan: got exit code %d:\n%s", code, out)
	}
	if got := pki.StageOf(pki.Layout{Dir: c.Dir}); got != before {
		t.Errorf("--plan went from stage %d to %d", before, got)
	}
}

// noKeysInEtcd wants nothing in etcd that is a key, and no certificate for a request that
// no controller has sealed.
func noKeysInEtcd(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	answer, err := c.Etcd(t).Get(t.Context(), "/kthwd/etcd-ca/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if len(answer.Kvs) != 3 { // the CA, and the requests of the two without its key
		t.Errorf("records of the move: got %d, want 3", len(answer.Kvs))
	}
	var secrets []string
	for i := range 3 {
		secrets = append(secrets, secretsIn(t, filepath.Join(filepath.Dir(c.Dir), fmt.Sprintf("c%d", i)))...)
	}
	for _, kv := range answer.Kvs {
		noSecret(t, string(kv.Key), string(kv.Value), secrets)
	}
}
