package pki

import (
	"os"
	"strings"
	"testing"
	"time"

	"kthwd/test/harness"
)

func table(t *testing.T, l Layout, now time.Time) string {
	t.Helper()
	entries, err := List(l)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := WriteTable(&out, entries, now); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestTable(t *testing.T) {
	l := fresh(t)
	before := contents(t, l.Dir)
	harness.Golden(t, "testdata/table.golden", []byte(table(t, l, noon)))
	wantSame(t, l.Dir, before)
}

func TestTableOfTutorial(t *testing.T) {
	l := tutorial(t, "PKCS#1")
	harness.Golden(t, "testdata/table-tutorial.golden", []byte(table(t, l, noon.AddDate(1, 1, 0))))
}

// TestTableOfTrouble: List reads directories that Ensure refuses.
func TestTableOfTrouble(t *testing.T) {
	l, other := fresh(t), filled(t)
	put(t, l.Cert(NameKubernetes), "garbage")
	put(t, l.Cert(NameServiceAccount), publicKey(t, loadPair(t, l, NameServiceAccount)))
	put(t, l.Cert(NameAdmin), get(t, other.Cert(NameAdmin)))
	put(t, l.Key(NameScheduler), get(t, l.Key(NameHealth)))
	put(t, l.Kubeconfig(NameAdmin), get(t, other.Kubeconfig(NameAdmin)))
	put(t, l.Kubeconfig(NameScheduler), "kind: Config\n")
	put(t, l.Cert("worker-1"), get(t, l.Cert(NameHealth)))
	put(t, l.Kubeconfig("worker-1"), get(t, l.Kubeconfig(NameControllerManager)))
	remove(t, l.Kubeconfig(NameControllerManager))
	evil := loadPair(t, l, NameHealth)
	evil.chain[0].RawSubject, evil.chain[0].Subject.CommonName = nil, "\x1b[2Jx\ty"
	put(t, l.Cert("evil"), string(encodeCertificates(sign(t, evil.chain[0], evil.key, loadPair(t, l, NameCA)).chain)))
	harness.Golden(t, "testdata/table-trouble.golden", []byte(table(t, l, noon.AddDate(-1, 0, 0))))
}

func TestListWithoutDirectory(t *testing.T) {
	if _, err := List(Layout{Dir: "/nonexistent"}); !os.IsNotExist(err) {
		t.Errorf("List = %v, want not exist", err)
	}
}

func TestLayout(t *testing.T) {
	l := Layout{Dir: "/var/lib/kubernetes"}
	got := strings.Join([]string{l.CA(), l.CAKey(), l.Cert(NameKubernetes), l.Key(NameKubernetes), l.Kubeconfig(NameAdmin),
		l.EncryptionConfig(), l.AuditPolicy(), l.AuditLog(), l.SchedulerConfig(), l.Etcd(), Layout{Dir: l.Dir, EtcdDir: "/srv/etcd"}.Etcd(),
		l.Run(), l.EtcdSocket(), l.ControlSocket(), l.Lock(), l.InstanceID()}, "\n") + "\n"
	harness.Golden(t, "testdata/layout.golden", []byte(got))
}
