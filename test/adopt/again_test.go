package adopt

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"kthwd/appliance/found"
	"kthwd/test/kthwtest"
)

// kthwd runs a verb and returns what it printed.
func kthwd(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(kthwtest.Binary(t), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("kthwd %q: %v\n%s", args, err, out)
	}
	return out
}

// halt stops a kthwd.
func halt(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	c.Signal(t, syscall.SIGTERM)
	if code := c.Wait(t, kthwtest.Soon); code != 0 {
		t.Errorf("got exit code %d of kthwd, want 0", code)
	}
}

// ejected is the machine after kthwd eject: the same data, and the units that it has written.
func (p *plant) ejected(t *testing.T, config string) *plant {
	t.Helper()
	q := &plant{root: t.TempDir(), data: p.data, etcd: p.etcd, ports: p.ports, admin: p.admin, words: map[string][]string{}, running: map[string]*exec.Cmd{}, logs: map[string]*bytes.Buffer{}}
	out, units := filepath.Join(q.root, "ejected"), filepath.Join(q.root, "etc/systemd/system")
	kthwd(t, "eject", "--config="+config, "--names=kthwd", "--bin-dir="+filepath.Dir(q.exe("etcd")), "--config-dir="+filepath.Join(out, "config"), "--out="+out)
	if err := errors.Join(os.MkdirAll(filepath.Dir(q.exe("etcd")), 0o755), os.CopyFS(units, os.DirFS(filepath.Join(out, "systemd")))); err != nil {
		t.Fatal(err)
	}
	for _, f := range found.Read(t.Context(), found.Options{Root: q.root, From: []string{found.FromUnits}}).Programs {
		q.words[f.Name] = f.Args
		if err := os.Symlink(kthwtest.Binary(t), q.exe(f.Name)); err != nil {
			t.Fatal(err)
		}
	}
	if len(q.words) != len(names) {
		t.Fatalf("got units of %d programs, want %d", len(q.words), len(names))
	}
	return q
}

// thereAndBack hands the cluster of an adopted controller over to the units of kthwd eject, and
// has kthwd adopt it from these. It returns the kthwd that runs then.
func (p *plant) thereAndBack(ctx context.Context, t *testing.T, c *kthwtest.Controller, before map[string]unstructured.Unstructured, token string) *kthwtest.Controller {
	t.Helper()
	first := c.File()
	q := p.ejected(t, first)
	away := kthwtest.WatchAway(t, p.admin)
	halt(t, c)
	q.startAll(ctx, t)
	once(t, "from kthwd to the programs", away())
	q.compare(ctx, t, before, token)

	again := filepath.Join(q.root, "kthwd.yaml")
	away = kthwtest.WatchAway(t, p.admin)
	q.stopAll()
	out, errs, code := q.adopt(t, "--was="+kubernetesVersion(t), "--data-dir="+p.data, "--out="+again)
	if code != 0 {
		t.Fatalf("adopted again: got exit code %d\n%s\n%s", code, out, errs)
	}
	c = kthwtest.Start(t, kthwtest.Options{Dir: p.data, File: again, Ports: &p.ports})
	once(t, "from the programs to kthwd", away())
	q.compare(ctx, t, before, token)
	// What kthwd does in code became flags on the way out, and must not stay flags.
	for _, name := range names {
		want, got := kthwd(t, "explain", name, "-o", "shell", "--config="+first), kthwd(t, "explain", name, "-o", "shell", "--config="+again)
		if !bytes.Equal(got, want) {
			t.Errorf("adopted again, %s has\n%s\nwant\n%s\n%s", name, got, want, out)
		}
	}
	return c
}

// once requires the API to go away once, and to stay when it is back.
func once(t *testing.T, way string, a kthwtest.Away) {
	t.Helper()
	t.Logf("%s: the API was away for %v", way, a.Longest)
	if a.Times != 1 {
		t.Errorf("%s: the API was away %d times, want once", way, a.Times)
	}
}
