package fault

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/test/kthwtest"
)

// A bad input gets one clear error with a hint and exit code 1 or 2, and nothing
// is damaged.

// attempt is a start that has to fail.
type attempt struct {
	dir     string
	ports   kthwtest.Ports
	args    []string
	prepare func(*exec.Cmd)
}

func (a attempt) run(t *testing.T) outcome {
	t.Helper()
	c := kthwtest.Controller{Dir: a.dir, Address: "127.0.0.1", Ports: a.ports}
	return runToEnd(t, a.prepare, append(c.Args(), a.args...)...)
}

// newAttempt has a new data directory with all files that kthwd makes at its
// first start, for free ports, and no etcd data.
func newAttempt(t *testing.T, args ...string) attempt {
	t.Helper()
	a := attempt{dir: filepath.Join(t.TempDir(), "data"), ports: kthwtest.FreePorts(t, "127.0.0.1"), args: args}
	a.makeFiles(t)
	return a
}

func (a attempt) makeFiles(t *testing.T) {
	t.Helper()
	out, err := exec.Command(kthwtest.Binary(t), "pki", "init", "--data-dir="+a.dir,
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", a.ports.Secure)).CombinedOutput()
	if err != nil {
		t.Fatalf("kthwd pki init: %v\n%s", err, out)
	}
}

func TestPortInUse(t *testing.T) {
	kthwtest.Turn(t, 1)
	for _, tt := range []struct {
		name, component, flag string
		port                  func(*kthwtest.Ports) *int
	}{
		{"API", "kube-apiserver", "--secure-port", func(p *kthwtest.Ports) *int { return &p.Secure }},
		{"etcd client", "etcd", "--etcd-client-port", func(p *kthwtest.Ports) *int { return &p.EtcdClient }},
		{"etcd peer", "etcd", "--etcd-peer-port", func(p *kthwtest.Ports) *int { return &p.EtcdPeer }},
		{"controller manager", kcm, "--controller-manager-port", func(p *kthwtest.Ports) *int { return &p.ControllerManager }},
		{"scheduler", sched, "--scheduler-port", func(p *kthwtest.Ports) *int { return &p.Scheduler }},
		{"health", "health", "--health-address", func(p *kthwtest.Ports) *int { return &p.Health }},
		{"metrics", "status", "--metrics-address", func(p *kthwtest.Ports) *int { return &p.Metrics }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			a := attempt{dir: filepath.Join(t.TempDir(), "data"), ports: kthwtest.FreePorts(t, "127.0.0.1")}
			*tt.port(&a.ports) = l.Addr().(*net.TCPAddr).Port
			a.makeFiles(t)
			before := contents(t, a.dir)
			a.run(t).check(t, 1, tt.flag, tt.component+": listen tcp "+l.Addr().String(), "address already in use")
			sameContents(t, a.dir, before)
		})
	}
}

// The same for all ports at once: each is named.
func TestAllPortsInUse(t *testing.T) {
	c := use(t)
	dir := filepath.Join(t.TempDir(), "data")
	o := attempt{dir: dir, ports: c.Ports}.run(t)
	problems, hints := o.errorLines()
	if o.code != 1 || len(problems) != 7 || len(hints) != 7 {
		t.Errorf("got exit code %d, %d errors and %d hints; want 1, 7 and 7\n%s", o.code, len(problems), len(hints), o.stderr)
	}
}

func TestSecondOnTheSameDirectory(t *testing.T) {
	c := use(t)
	o := attempt{dir: c.Dir, ports: kthwtest.FreePorts(t, "127.0.0.1")}.run(t)
	o.check(t, 1, "stop that one first", c.Dir+" is in use by another kthwd", fmt.Sprintf("process %d", c.Cmd.Process.Pid))
	if r, err := c.Status(); err != nil || !r.Ready {
		t.Errorf("the first one: got ready %v (%v), want it untouched", r.Ready, err)
	}
}

// badFiles are files of a data directory that a start refuses, each with its hint and the words of the error.
var badFiles = []struct {
	name  string
	spoil func(t *testing.T, dir string)
	hint  string
	parts []string
}{
	{"CA key readable by the world", func(t *testing.T, dir string) { chmod(t, dir, "ca-key.pem", 0o644) },
		"chmod", []string{"ca-key.pem"}},
	{"server key readable by the world", func(t *testing.T, dir string) { chmod(t, dir, "kubernetes-key.pem", 0o604) },
		"chmod", []string{"kubernetes-key.pem"}},
	{"encryption key readable by the world", func(t *testing.T, dir string) { chmod(t, dir, "encryption-config.yaml", 0o644) },
		"chmod", []string{"encryption-config.yaml"}},
	{"a private key in a certificate readable by the world", func(t *testing.T, dir string) {
		appendTo(t, dir, "kubernetes.pem", string(pemOf(t, dir, "kubernetes-key.pem")))
	}, "chmod 600", []string{"kubernetes.pem", "mode 0644"}},
	{"a private key in the certificate of the token keys", func(t *testing.T, dir string) {
		appendTo(t, dir, "service-account.pem", string(pemOf(t, dir, "service-account-key.pem")))
	}, "chmod 600", []string{"service-account.pem", "mode 0644"}},
	{"a kubeconfig readable by the world", func(t *testing.T, dir string) { chmod(t, dir, "admin.kubeconfig", 0o644) },
		"chmod", []string{"admin.kubeconfig", "mode 0644"}},
	{"a CA that is hidden by a byte order mark", func(t *testing.T, dir string) {
		overwrite(t, dir, "ca.pem", "\xef\xbb\xbf"+string(pemOf(t, dir, "ca.pem")))
	},
		"", []string{"ca.pem", "byte order mark"}},
	{"no CA belongs to the key", func(t *testing.T, dir string) {
		overwrite(t, dir, "ca.pem", string(pemOf(t, dir, "front-proxy-ca.pem"))+string(pemOf(t, newAttempt(t).dir, "ca.pem")))
		remove(t, dir, "kubernetes.pem", "kubernetes-key.pem", "kthwd-health.pem", "kthwd-health-key.pem", "service-account.pem")
		for _, name := range []string{"admin", "super-admin", "kube-controller-manager", "kube-scheduler"} {
			remove(t, dir, name+".pem", name+"-key.pem", name+".kubeconfig")
		}
	}, "", []string{"ca-key.pem", "not the key of"}},
	{"an address among the DNS names", func(t *testing.T, dir string) {
		issueFor(t, dir, dir, time.Now().Add(time.Hour), []string{"kubernetes", "localhost", "127.0.0.1"}, nil)
	}, "", []string{"kubernetes.pem", "not valid for 127.0.0.1"}},
	{"no name but the common name", func(t *testing.T, dir string) {
		issueFor(t, dir, dir, time.Now().Add(time.Hour), nil, nil)
	}, "", []string{"kubernetes.pem", "not valid for 127.0.0.1"}},
	{"another address", func(t *testing.T, dir string) {
		issueFor(t, dir, dir, time.Now().Add(time.Hour), []string{"kubernetes", "localhost"}, []net.IP{net.IPv4(10, 240, 0, 99)})
	}, "", []string{"kubernetes.pem", "not valid for 127.0.0.1"}},
	{"certificate expired, and nothing here renews it", func(t *testing.T, dir string) {
		issue(t, dir, dir, time.Now().Add(-time.Hour))
		remove(t, dir, "ca-key.pem")
	}, "", []string{"kubernetes.pem", "expired", "the key of its CA is not here"}},
	{"certificate from another CA", func(t *testing.T, dir string) { issue(t, newAttempt(t).dir, dir, time.Now().Add(time.Hour)) },
		"", []string{"kubernetes.pem", "ca.pem"}},
	{"key of another certificate", func(t *testing.T, dir string) { move(t, dir, "admin-key.pem", "kubernetes-key.pem") },
		"", []string{"kubernetes.pem", "kubernetes-key.pem"}},
	{"CA key missing, a certificate too", func(t *testing.T, dir string) { remove(t, dir, "ca-key.pem", "kubernetes.pem") },
		"", []string{"ca-key.pem"}},
	{"certificate is no PEM", func(t *testing.T, dir string) { overwrite(t, dir, "kubernetes.pem", "hello") },
		"", []string{"kubernetes.pem"}},
	{"encryption configuration is no YAML", func(t *testing.T, dir string) { overwrite(t, dir, "encryption-config.yaml", "kind: [") },
		"", []string{"encryption-config.yaml"}},
	{"encryption configuration without a provider", func(t *testing.T, dir string) {
		overwrite(t, dir, "encryption-config.yaml", "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets]\n")
	}, "correct the file", []string{"encryption-config.yaml", "at least one resources[0].providers is required"}},
	{"audit policy is no policy", func(t *testing.T, dir string) { overwrite(t, dir, "audit-policy.yaml", "kind: Pod\n") },
		"correct the file", []string{"audit-policy.yaml"}},
	{"authentication configuration is none", func(t *testing.T, dir string) { overwrite(t, dir, "authentication-config.yaml", "kind: Pod\n") },
		"correct the file", []string{"authentication-config.yaml", "is no AuthenticationConfiguration"}},
	{"authentication configuration with an unknown field", func(t *testing.T, dir string) {
		overwrite(t, dir, "authentication-config.yaml", "kind: AuthenticationConfiguration\napiVersion: apiserver.config.k8s.io/v1\nanonymus: {enabled: true}\n")
	}, "correct the file", []string{"authentication-config.yaml", "anonymus"}},
	{"authentication configuration with a wrong issuer", func(t *testing.T, dir string) {
		overwrite(t, dir, "authentication-config.yaml", "kind: AuthenticationConfiguration\napiVersion: apiserver.config.k8s.io/v1\njwt: [{issuer: {url: 'http://x', audiences: [a]}}]\n")
	}, "correct the file", []string{"authentication-config.yaml", "jwt[0].issuer.url"}},
	{"scheduler configuration is none", func(t *testing.T, dir string) {
		overwrite(t, dir, "kube-scheduler.yaml", "kind: KubeSchedulerConfiguration\napiVersion: kubescheduler.config.k8s.io/v1\nprofile: []\n")
	}, "correct the file", []string{"kube-scheduler.yaml", "profile"}},
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	for _, tt := range badFiles {
		t.Run(tt.name, func(t *testing.T) {
			kthwtest.Turn(t, 1)
			a := newAttempt(t)
			tt.spoil(t, a.dir)
			before := contents(t, a.dir)
			a.run(t).check(t, 1, tt.hint, tt.parts...)
			if err := os.RemoveAll(filepath.Join(a.dir, "etcd")); err != nil { // made meanwhile: only the API server itself reads its files
				t.Error(err)
			}
			sameContents(t, a.dir, before)
		})
	}
}

func TestBadWords(t *testing.T) {
	t.Parallel()
	file := func(t *testing.T, text string) string {
		path := filepath.Join(t.TempDir(), "kthwd.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return "--config=" + path
	}
	for _, tt := range []struct {
		name  string
		args  []string
		yaml  string
		code  int
		hint  string
		parts []string
	}{
		{"broken YAML", nil, "name: c0\nrole: [controller\n", 2, "-", []string{"kthwd.yaml:", "not YAML"}},
		{"unknown key", nil, "name: c0\nsecure-prot: 6443\n", 2, "secure-port", []string{"kthwd.yaml:2", "secure-prot"}},
		{"unknown role", []string{"--role=controler"}, "", 2, "controller", []string{`"controler" is not a role`}},
		{"flag of another role", []string{"--backend=10.0.0.1:6443"}, "", 2, "kthwd config --role=controller lists", []string{"--backend belongs to --role=lb"}},
		{"ranges overlap", []string{"--service-cluster-ip-range=10.200.1.0/24"}, "", 2, "separate ranges", []string{"10.200.1.0/24 overlaps --cluster-cidr 10.200.0.0/16"}},
		{"unknown flag", []string{"--secure-prot=1"}, "", 2, "--secure-port", []string{"--secure-prot"}},
		{"unknown flag of kube-apiserver", []string{"--kube-apiserver-arg=nonsense=1"}, "", 2, "kubernetes.io", []string{"--kube-apiserver-arg=nonsense", "kube-apiserver has no such flag"}},
		{"misspelled flag of kube-apiserver", []string{"--kube-apiserver-arg=audit-log-maxsise=1"}, "", 2, "did you mean --kube-apiserver-arg=audit-log-maxsize?", []string{"kube-apiserver has no such flag"}},
		{"misspelled flag of etcd", []string{"--etcd-arg=hartbeat-interval=1"}, "", 2, "did you mean --etcd-arg=heartbeat-interval?", []string{"etcd has no such flag"}},
		{"unknown flag of etcd", []string{"--etcd-arg=nonsense=1"}, "", 2, "etcd.io", []string{"--etcd-arg=nonsense", "etcd has no such flag"}},
		{"unknown flag of kube-controller-manager", []string{"--kube-controller-manager-arg=nonsense"}, "", 2, "kubernetes.io", []string{"--kube-controller-manager-arg=nonsense"}},
		{"unknown flag of kube-scheduler", []string{"--kube-scheduler-arg=--nonsense=1"}, "", 2, "kubernetes.io", []string{"--kube-scheduler-arg=nonsense"}},
		{"bad value of kube-apiserver", []string{"--kube-apiserver-arg=event-ttl=long"}, "", 2, "kubernetes.io", []string{"--kube-apiserver-arg", "event-ttl", "long"}},
		{"bad value of etcd", []string{"--etcd-arg=heartbeat-interval=long"}, "", 2, "etcd.io", []string{"--etcd-arg", "heartbeat-interval", "long"}},
		{"kthwd's own flag of kube-apiserver", []string{"--kube-apiserver-arg=secure-port=1"}, "", 2, "--secure-port", []string{"--kube-apiserver-arg=secure-port=1", "kthwd sets this flag itself"}},
		{"kthwd's own flag of etcd", []string{"--etcd-arg=data-dir=/x"}, "", 2, "--etcd-data-dir", []string{"--etcd-arg=data-dir=/x", "kthwd sets this flag itself"}},
		{"kthwd's own flag of kube-scheduler", []string{"--kube-scheduler-arg=write-config-to=/x"}, "", 2, "", []string{"kthwd sets this flag itself"}},
		{"feature gates that differ", []string{"--kube-apiserver-arg=feature-gates=AllAlpha=true", "--kube-scheduler-arg=feature-gates=AllAlpha=false"}, "", 2, "whole process", []string{"AllAlpha=true", "AllAlpha=false"}},
		{"unknown feature gate", []string{"--kube-apiserver-arg=feature-gates=Nonsense=true"}, "", 2, "-", []string{"Nonsense"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kthwtest.Turn(t, 1)
			a := newAttempt(t, tt.args...)
			before := contents(t, a.dir)
			if tt.yaml != "" {
				a.args = append(a.args, file(t, tt.yaml))
			}
			a.run(t).check(t, tt.code, tt.hint, tt.parts...)
			sameContents(t, a.dir, before)
		})
	}
}

// A controller whose CA key is kept elsewhere, and which has all certificates,
// runs; kube-controller-manager signs nothing there, and says so.
func TestWithoutCAKey(t *testing.T) {
	kthwtest.Turn(t, 1)
	a := newAttempt(t)
	remove(t, a.dir, "ca-key.pem")
	c := kthwtest.Start(t, kthwtest.Options{Dir: a.dir, Ports: &a.ports})
	kthwtest.WaitFor(t, "the controllers to work", soon, func() error {
		_, err := c.Client(t).CoreV1().ServiceAccounts("default").Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	if ended := c.EndedTerms(kcm); len(ended) > 0 {
		t.Errorf("terms have ended: %q", ended)
	}
	if log := c.Log.String(); !strings.Contains(log, "level=WARN") || !strings.Contains(log, "ca-key.pem: missing") {
		t.Errorf("got log\n%s\nwant a warning of the missing key", log)
	}
}

// Trust is a bundle: with another CA in ca.pem, as during a rotation, the one that belongs
// to ca-key.pem signs what kube-controller-manager is asked to.
func TestTwoCAs(t *testing.T) {
	kthwtest.Turn(t, 1)
	a := newAttempt(t)
	own := pemOf(t, a.dir, "ca.pem")
	overwrite(t, a.dir, "ca.pem", "# the next one\r\n"+string(pemOf(t, newAttempt(t).dir, "ca.pem"))+string(own)+string(own))
	c := kthwtest.Start(t, kthwtest.Options{Dir: a.dir, Ports: &a.ports})
	client := c.Client(t)
	kthwtest.WaitFor(t, "the bundle in each namespace", soon, func() error {
		m, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		if err == nil && strings.Count(m.Data["ca.crt"], "BEGIN CERTIFICATE") != 3 {
			err = fmt.Errorf("got %q", m.Data["ca.crt"])
		}
		return err
	})
	csr := request(t, client, "someone")
	kthwtest.WaitFor(t, "a certificate", soon, func() error {
		got, err := client.CertificatesV1().CertificateSigningRequests().Get(t.Context(), csr, metav1.GetOptions{})
		if err != nil || len(got.Status.Certificate) == 0 {
			return fmt.Errorf("got none (%w)", err)
		}
		leaf, _ := pem.Decode(got.Status.Certificate)
		cert, err := x509.ParseCertificate(leaf.Bytes)
		if err != nil {
			return err
		}
		ca, _ := pem.Decode(own)
		parent, err := x509.ParseCertificate(ca.Bytes)
		if err != nil {
			return err
		}
		return cert.CheckSignatureFrom(parent)
	})
	if ended := c.EndedTerms(kcm); len(ended) > 0 {
		t.Errorf("terms have ended: %q", ended)
	}
}

// request asks for a client certificate, approved.
func request(t *testing.T, client kubernetes.Interface, user string) (name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: user}}, key)
	if err != nil {
		t.Fatal(err)
	}
	all := client.CertificatesV1().CertificateSigningRequests()
	csr, err := all.Create(t.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: user},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: certificatesv1.KubeAPIServerClientSignerName, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"})
	if _, err := all.UpdateApproval(t.Context(), user, csr, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return user
}

// kthwd's own flag gives way to one that excludes it, and a minus takes one out.
func TestFlagsGiveWay(t *testing.T) {
	kthwtest.Turn(t, 1)
	file := filepath.Join(t.TempDir(), "authz.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- {type: Node, name: node}\n- {type: RBAC, name: rbac}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--kube-apiserver-arg=authorization-config=" + file, "--kube-apiserver-arg=audit-log-path-"}})
	kthwtest.WaitFor(t, "a write", soon, func() error { return write(t, c.Client(t), "kept") })
	if _, err := os.Stat(filepath.Join(c.Dir, "audit.log")); err == nil {
		t.Error("audit.log was written, although its flag was taken out")
	}
	if log := c.Log.String(); !strings.Contains(log, "gives way to --authorization-config") || !strings.Contains(log, "(taken out)") {
		t.Errorf("log: got\n%s\nwant both flags named", log)
	}
}

// openDir is a directory that every user can get to; t.TempDir's are their owner's.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kthwd-fault-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// asNobody runs kthwd as another user when the test is root's, so that
// permissions count. The binary is copied to where that user can reach it.
func asNobody(t *testing.T, dir string) func(*exec.Cmd) {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	binary := filepath.Join(dir, "kthwd")
	if os.Link(kthwtest.Binary(t), binary) != nil { // another file system
		data, err := os.ReadFile(kthwtest.Binary(t))
		if err == nil {
			err = os.WriteFile(binary, data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return func(cmd *exec.Cmd) {
		cmd.Path = binary
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
}

func TestDirectoryOfSomebodyElse(t *testing.T) {
	kthwtest.Turn(t, 1)
	open := openDir(t)
	prepare := asNobody(t, open)
	t.Run("not writable", func(t *testing.T) {
		parent := filepath.Join(open, "locked")
		if err := os.Mkdir(parent, 0o555); err != nil {
			t.Fatal(err)
		}
		a := attempt{dir: filepath.Join(parent, "data"), ports: kthwtest.FreePorts(t, "127.0.0.1"), prepare: prepare}
		a.run(t).check(t, 1, "--data-dir", a.dir, "permission denied")
	})
	for _, mode := range []os.FileMode{0o700, 0o755} {
		t.Run(fmt.Sprintf("of root, mode %o", mode), func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root, to have files of two users")
			}
			a := attempt{dir: filepath.Join(open, fmt.Sprintf("data-%o", mode)), ports: kthwtest.FreePorts(t, "127.0.0.1"), prepare: prepare}
			a.makeFiles(t)
			if err := os.Chmod(a.dir, mode); err != nil {
				t.Fatal(err)
			}
			before := contents(t, a.dir)
			a.run(t).check(t, 1, "--data-dir", a.dir, "permission denied")
			sameContents(t, a.dir, before)
		})
	}
}

func chmod(t *testing.T, dir, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func move(t *testing.T, dir, from, to string) {
	t.Helper()
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		t.Fatal(err)
	}
}

func pemOf(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func appendTo(t *testing.T, dir, name, text string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(text)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue replaces kubernetes.pem in dir by one that the CA in caDir signed and
// that is good until notAfter.
func issue(t *testing.T, caDir, dir string, notAfter time.Time) {
	t.Helper()
	issueFor(t, caDir, dir, notAfter,
		strings.Fields("kubernetes kubernetes.default kubernetes.default.svc kubernetes.default.svc.cluster kubernetes.svc.cluster.local kubernetes.default.svc.cluster.local localhost"),
		[]net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 32, 0, 1), net.IPv6loopback})
}

func issueFor(t *testing.T, caDir, dir string, notAfter time.Time, names []string, addresses []net.IP) {
	t.Helper()
	ca, err := x509.ParseCertificate(block(t, caDir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := x509.ParsePKCS8PrivateKey(block(t, caDir, "ca-key.pem"))
	if err != nil {
		if caKey, err = x509.ParseECPrivateKey(block(t, caDir, "ca-key.pem")); err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "kubernetes"},
		NotBefore: notAfter.Add(-24 * time.Hour), NotAfter: notAfter,
		DNSNames:    names,
		IPAddresses: addresses,
		KeyUsage:    x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, dir, "kubernetes.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	overwrite(t, dir, "kubernetes-key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
}

func block(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := pem.Decode(data)
	if b == nil {
		t.Fatalf("%s is no PEM", name)
	}
	return b.Bytes
}
