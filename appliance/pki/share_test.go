package pki

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sharing makes the files of a controller at 10.0.1.73, for others to share.
func sharing(t *testing.T) Layout {
	t.Helper()
	l := Layout{Dir: filepath.Join(t.TempDir(), "c0")}
	spec := Spec{Addresses: []string{"10.0.1.73", "10.0.1.10"}, Local: []string{"10.0.1.73", "127.0.0.1"}, ServiceIP: net.ParseIP("10.32.0.1"), Server: "https://127.0.0.1:6443"}
	if _, err := Ensure(l, spec); err != nil {
		t.Fatal(err)
	}
	return l
}

func joinerSpec() Spec {
	return Spec{Addresses: []string{"10.0.1.35"}, Local: []string{"10.0.1.35", "127.0.0.1"}, ServiceIP: net.ParseIP("10.32.0.1"), Server: "https://127.0.0.1:7443"}
}

// A further controller receives the files that it needs, and no others.
func TestShare(t *testing.T) {
	c0 := sharing(t)
	for _, caKey := range []bool{false, true} {
		shared, err := Share(c0, []string{"https://127.0.0.1:6443", "https://10.0.1.73:6443"}, caKey)
		if err != nil {
			t.Fatal(err)
		}
		issued, err := IssueController(c0, []string{"10.0.1.35"}, NameKubernetes, NameEtcd)
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range issued.Files {
			shared.Files[name] = data
		}
		c1 := Layout{Dir: filepath.Join(t.TempDir(), "new", "c1")}
		report, err := shared.Adopt(c1, joinerSpec().Server)
		if err != nil || len(report.Created) != len(shared.Files) {
			t.Fatalf("Adopt: made %d of %d files: %v", len(report.Created), len(shared.Files), err)
		}
		report, err = Check(c1, joinerSpec())
		if err != nil || len(report.Missing) > 0 {
			t.Errorf("what was adopted: got %v, missing %v; want a whole directory", err, report.Missing)
		}
		for _, key := range []string{c1.CAKey(), c1.Key(NameFrontProxyCA)} {
			if got, want := there(key), caKey && key == c1.CAKey(); got != want {
				t.Errorf("%s with caKey %v: there is %v, want %v", filepath.Base(key), caKey, got, want)
			}
		}
		for _, name := range machineConfigs {
			data, err := os.ReadFile(c1.Kubeconfig(name))
			if err != nil || !bytes.Contains(data, []byte("server: "+joinerSpec().Server)) {
				t.Errorf("%s.kubeconfig: its server is not the controller's own (%v)", name, err)
			}
		}
		for _, path := range []string{c1.Key(NameKubernetes), c1.Key(NameServiceAccount), c1.EncryptionConfig(), c1.Kubeconfig(NameAdmin)} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != modeSecret {
				t.Errorf("%s: got %v (%v), want mode 0600", path, info.Mode(), err)
			}
		}
		if again, err := shared.Adopt(c1, joinerSpec().Server); err != nil || len(again.Created) > 0 {
			t.Errorf("a second time: made %v (%v), want nothing", again.Created, err)
		}
	}
}

// admin.kubeconfig of a cluster with a load balancer still names the load balancer.
func TestShareKeepsTheBalancer(t *testing.T) {
	c0 := sharing(t)
	data, err := os.ReadFile(c0.Kubeconfig(NameAdmin))
	if err == nil {
		err = os.WriteFile(c0.Kubeconfig(NameAdmin), bytes.ReplaceAll(data, []byte("https://127.0.0.1:6443"), []byte("https://10.0.1.10:6443")), modeSecret)
	}
	if err != nil {
		t.Fatal(err)
	}
	shared, err := Share(c0, []string{"https://127.0.0.1:6443"}, false)
	if err != nil || shared.Admin != "https://10.0.1.10:6443" {
		t.Fatalf("got the server %q (%v), want the balancer", shared.Admin, err)
	}
	c1 := Layout{Dir: filepath.Join(t.TempDir(), "c1")}
	if _, err := shared.Adopt(c1, joinerSpec().Server); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{NameAdmin: "https://10.0.1.10:6443", NameScheduler: joinerSpec().Server} {
		if data, err := os.ReadFile(c1.Kubeconfig(name)); err != nil || !bytes.Contains(data, []byte("server: "+want)) {
			t.Errorf("%s.kubeconfig: its server is not %s (%v)", name, want, err)
		}
	}
}

// Existing files are kept, and refused where they must be the cluster's but are not.
func TestAdoptRefuses(t *testing.T) {
	c0, other := sharing(t), sharing(t)
	shared, err := Share(c0, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	before := map[string][]byte{}
	for name := range shared.Files {
		data, err := os.ReadFile(filepath.Join(other.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		before[name] = data
	}
	if err := os.Remove(other.AuditPolicy()); err != nil {
		t.Fatal(err)
	}
	_, err = shared.Adopt(other, joinerSpec().Server)
	var got []string
	for _, m := range misfits(err) {
		got = append(got, filepath.Base(m.File))
	}
	slices.Sort(got)
	want := "ca-key.pem ca.pem encryption-config.yaml etcd-ca-key.pem etcd-ca.pem front-proxy-ca.pem service-account-key.pem service-account.pem"
	if strings.Join(got, " ") != want {
		t.Errorf("got misfits %v, want %s", got, want)
	}
	if there(other.AuditPolicy()) {
		t.Errorf("a file was written although others do not fit")
	}
	for name, data := range before {
		if after, err := os.ReadFile(filepath.Join(other.Dir, name)); name != filepath.Base(other.AuditPolicy()) && (err != nil || !bytes.Equal(after, data)) {
			t.Errorf("%s has changed (%v)", name, err)
		}
	}
}

func TestIssueController(t *testing.T) {
	c0 := sharing(t)
	issued, err := IssueController(c0, []string{"10.0.1.35"}, NameKubernetes, NameEtcd)
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := parseCertificates(issued.Files["kubernetes.pem"])
	if err != nil {
		t.Fatal(err)
	}
	if lack := lacking(chain[0], []string{"10.0.1.35", "10.0.1.10", "127.0.0.1", "10.32.0.1", "kubernetes.default.svc.cluster.local"}); len(lack) > 0 {
		t.Errorf("the certificate lacks %v", lack)
	}
	dir := filepath.Join(t.TempDir(), "c1")
	if _, err := issued.Alone(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := issued.Alone(dir); len(misfits(err)) != 4 {
		t.Errorf("over files that are there: got %v, want all refused", err)
	}
	if err := os.Remove(c0.CAKey()); err != nil {
		t.Fatal(err)
	}
	if _, err := IssueController(c0, []string{"10.0.1.35"}, NameKubernetes, NameEtcd); !errors.Is(err, ErrNoCAKey) {
		t.Errorf("without the CA's key: got %v, want ErrNoCAKey", err)
	}
}

func TestPin(t *testing.T) {
	pin, der, err := Pin(sharing(t))
	if err != nil || pin != sha256.Sum256(der) {
		t.Errorf("got %x of %d bytes (%v)", pin, len(der), err)
	}
	if other, _, err := Pin(sharing(t)); err != nil || other == pin {
		t.Errorf("another CA: got the same pin (%v)", err)
	}
	if _, _, err := Pin(Layout{Dir: t.TempDir()}); err == nil {
		t.Errorf("without a CA: got no error")
	}
}

// TestCrashOfAdopt stops an Adopt after each of its steps. The next one adds the
// missing files, with the same certificate or with a new one.
func TestCrashOfAdopt(t *testing.T) {
	c0 := sharing(t)
	offer := func(t *testing.T, needs ...string) Shared {
		t.Helper()
		shared, err := Share(c0, nil, false)
		if err == nil {
			var issued Shared
			if issued, err = IssueController(c0, []string{"10.0.1.35"}, needs...); err == nil {
				maps.Copy(shared.Files, issued.Files)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		return shared
	}
	plan := func(t *testing.T, l Layout) []file {
		t.Helper()
		_, files, err := offer(t, NameKubernetes, NameEtcd).plan(l, joinerSpec().Server)
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	kept := 0
	for step := range 3*len(plan(t, Layout{Dir: t.TempDir()})) + 1 {
		l := Layout{Dir: t.TempDir()}
		crashAfter(t, step, plan(t, l))
		var needs []string
		for _, name := range []string{NameKubernetes, NameEtcd} {
			has, err := FinishCertificate(l, name)
			if err != nil {
				t.Fatalf("after %d steps: %v", step, err)
			}
			if has {
				kept++
			} else {
				needs = append(needs, name)
			}
		}
		if _, err := offer(t, needs...).Adopt(l, joinerSpec().Server); err != nil {
			t.Errorf("Adopt after %d steps: %v", step, err)
			continue
		}
		if _, err := Ensure(l, joinerSpec()); err != nil {
			t.Errorf("Ensure after %d steps: %v", step, err)
		}
		if report, err := Check(l, joinerSpec()); err != nil || len(report.Missing) > 0 {
			t.Errorf("after %d steps: got %v, missing %v; want a whole directory", step, err, report.Missing)
		}
	}
	if kept == 0 {
		t.Error("no certificate of an interrupted Adopt was used")
	}
}
