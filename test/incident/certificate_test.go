package incident

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/test/kthwtest"
)

// someName is a name of the certificate that no configuration has.
const someName = "incident.example.com"

// newFiles makes the files of a controller with someName in kubernetes.pem.
func newFiles(t *testing.T, ports kthwtest.Ports) pki.Layout {
	t.Helper()
	l := pki.Layout{Dir: filepath.Join(t.TempDir(), "data")}
	initFiles(t, l, ports)
	return l
}

// initFiles makes the missing files.
func initFiles(t *testing.T, l pki.Layout, ports kthwtest.Ports) {
	t.Helper()
	out, err := exec.Command(kthwtest.Binary(t), "pki", "init", "--config=", "--data-dir="+l.Dir, "--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1", "--subject-alt-name="+someName, fmt.Sprintf("--secure-port=%d", ports.Secure)).CombinedOutput()
	if err != nil {
		t.Fatalf("kthwd pki init: %v\n%s", err, out)
	}
}

// expireIn signs a certificate again, with the same key and names and another end.
func expireIn(t *testing.T, l pki.Layout, name, ca string, left time.Duration) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(l.Cert(name), l.Key(name))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := tls.LoadX509KeyPair(l.Cert(ca), l.Key(ca))
	if err != nil {
		t.Fatal(err)
	}
	template := *pair.Leaf
	template.NotAfter = time.Now().Add(left)
	template.NotBefore = template.NotAfter.Add(-30 * 24 * time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, &template, signer.Leaf, pair.PrivateKey.(crypto.Signer).Public(), signer.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.Cert(name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
}

// C13: certificates expire in 5 days, and the keys of the CAs are elsewhere. Each finding has a
// command that makes a new one with the same names, once the keys are there, and every port
// serves it without a restart.
func TestCertificatesExpireSoon(t *testing.T) {
	kthwtest.Turn(t, 1)
	ports := kthwtest.FreePorts(t, "127.0.0.1")
	l := newFiles(t, ports)
	for name, ca := range map[string]string{pki.NameKubernetes: "ca", pki.NameHealth: "ca", pki.NameFrontProxyClient: pki.NameFrontProxyCA, pki.NameEtcd: pki.NameEtcdCA} {
		expireIn(t, l, name, ca, 5*24*time.Hour)
	}
	bring := withoutCAKeys(t, l)
	c := kthwtest.Start(t, kthwtest.Options{Dir: l.Dir, Ports: &ports})
	before, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	if do := finding(t, c, "certificate_renewal", "the key of its CA is not here: "+l.CAKey()).Do; !strings.Contains(do, "kthwd pki renew kubernetes") || !strings.Contains(do, "--csr-out=DIR") {
		t.Errorf("got %s, want how to have it signed elsewhere", do)
	}
	found := look(t, c, incident{
		name: "C13 kubernetes.pem expires in 5 days", kind: "certificate", bridge: "-",
		cause: "kubernetes.pem (CN=kubernetes,O=Kubernetes) expires in ", do: "kthwd pki renew kubernetes --data-dir=",
		log: "kubernetes.pem: expires on ",
	})
	etcd, others := finding(t, c, "certificate", "etcd.pem (").Do, []string{}
	for _, name := range []string{pki.NameHealth, pki.NameFrontProxyClient} {
		others = append(others, finding(t, c, "certificate", name+".pem (").Do)
	}
	bring()
	typeCommand(t, found.Do)
	typeCommand(t, etcd)
	for _, port := range []int{ports.Secure, ports.EtcdClient, ports.EtcdPeer, ports.ControllerManager, ports.Scheduler} {
		kthwtest.WaitFor(t, fmt.Sprintf("the new certificate at port %d", port), soon, func() error { return servesNew(port) })
	}
	for _, do := range others {
		typeCommand(t, do)
	}
	healthy(t, c, "certificate")
	healthy(t, c, "certificate_renewal")
	after, err := c.Status()
	if err != nil || after.PID != before.PID || after.Started != before.Started {
		t.Errorf("got %v and %+v; want the same process as %+v", err, after, before)
	}
	for i, s := range after.Components {
		if s.Name != program.ControllerManager && s.Name != program.Scheduler && s.Restarts != before.Components[i].Restarts {
			t.Errorf("%s has begun again: %+v", s.Name, s)
		}
	}
	for _, name := range []string{program.ControllerManager, program.Scheduler} {
		if ended := c.EndedTerms(name); len(ended) > 0 {
			t.Errorf("%s: terms have ended: %q", name, ended)
		}
	}
}

// withoutCAKeys moves the keys of all CAs away, until bring is called.
func withoutCAKeys(t *testing.T, l pki.Layout) (bring func()) {
	t.Helper()
	away := t.TempDir()
	move := func(from, to string) {
		t.Helper()
		for _, name := range []string{"ca-key.pem", "etcd-ca-key.pem", "front-proxy-ca-key.pem"} {
			if err := os.Rename(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	move(l.Dir, away)
	return func() { t.Helper(); move(away, l.Dir) }
}

// A certificate in a kubeconfig is renewed as well, and its program takes it over.
func TestKubeconfigExpiresSoon(t *testing.T) {
	kthwtest.Turn(t, 1)
	ports := kthwtest.FreePorts(t, "127.0.0.1")
	l := newFiles(t, ports)
	expireIn(t, l, pki.NameScheduler, "ca", 5*24*time.Hour)
	if err := os.Remove(l.Kubeconfig(pki.NameScheduler)); err != nil {
		t.Fatal(err)
	}
	initFiles(t, l, ports) // with the certificate that expires
	c := kthwtest.Start(t, kthwtest.Options{Dir: l.Dir, Ports: &ports})
	for _, file := range []string{l.Kubeconfig(pki.NameScheduler), filepath.Join(l.Run(), "kube-scheduler-client.pem")} {
		kthwtest.WaitFor(t, "a new certificate in "+file, soon, func() error {
			if used := pki.Used(file); len(used) == 0 || time.Until(used[0].NotAfter) < 300*24*time.Hour {
				return fmt.Errorf("got %+v", used)
			}
			return nil
		})
	}
	healthy(t, c, "certificate")
}

func servesNew(port int) error {
	conn, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), &tls.Config{InsecureSkipVerify: true}) // only looked at
	if err != nil {
		return err
	}
	defer conn.Close()
	leaf := conn.ConnectionState().PeerCertificates[0]
	if time.Until(leaf.NotAfter) < 300*24*time.Hour || !slices.Contains(leaf.DNSNames, someName) {
		return fmt.Errorf("got %v until %s", leaf.DNSNames, leaf.NotAfter)
	}
	return nil
}

// C15: a certificate has expired while nothing ran, and the key of its CA is elsewhere. With the
// key, a start renews it.
func TestCertificateExpired(t *testing.T) {
	kthwtest.Turn(t, 1)
	ports := kthwtest.FreePorts(t, "127.0.0.1")
	l := newFiles(t, ports)
	expireIn(t, l, pki.NameKubernetes, "ca", -24*time.Hour)
	bring := withoutCAKeys(t, l)
	out := refused(t, l.Dir, ports)
	ended(t, incident{name: "C15 kubernetes.pem has expired", cause: l.Cert(pki.NameKubernetes) + ": expired on ", do: "kthwd pki renew kubernetes --csr-out=DIR"},
		out, out, `expired on \d{4}-\d\d-\d\d.*it cannot be renewed, because the key of its CA is not here`)
	bring()
	c := kthwtest.Start(t, kthwtest.Options{Dir: l.Dir, Ports: &ports})
	if err := servesNew(ports.Secure); err != nil {
		t.Error(err)
	}
	if log := c.Log.String(); !strings.Contains(log, "expired certificates renewed") {
		t.Errorf("no word about the renewal:\n%s", c.Log.Tail(50))
	}
}
