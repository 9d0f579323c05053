package fault

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/test/kthwtest"
)

// ledgerEntry is what kthwd kubeconfig list -o json prints of a certificate.
type ledgerEntry struct {
	Serial   string    `json:"serial"`
	User     string    `json:"user"`
	Groups   []string  `json:"groups"`
	State    string    `json:"state"`
	Signer   string    `json:"signer"`
	Request  string    `json:"request"`
	AskedBy  string    `json:"askedBy"`
	NotAfter time.Time `json:"notAfter"`
}

// ledger reads the certificates of a user.
func ledger(t *testing.T, c *kthwtest.Controller, user string, flags ...string) (all []ledgerEntry) {
	t.Helper()
	out := kthwd(t, append([]string{"kubeconfig", "list", "-o=json", "--config=", "--data-dir=" + c.Dir}, flags...)...)
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(e ledgerEntry) bool { return e.User != user })
}

// newUser makes a kubeconfig, and returns its path and a client with it.
func newUser(t *testing.T, c *kthwtest.Controller, user string, flags ...string) (string, *kubernetes.Clientset) {
	t.Helper()
	path := filepath.Join(t.TempDir(), user+".kubeconfig")
	out := kthwd(t, append([]string{"kubeconfig", "create", user, "--out=" + path, "--config=", "--data-dir=" + c.Dir}, flags...)...)
	if !strings.HasPrefix(out, "made  "+path+" for "+user+" until ") {
		t.Errorf("create %s: got %s", user, out)
	}
	return path, clientOf(t, path)
}

func clientOf(t *testing.T, kubeconfig string) *kubernetes.Clientset {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	return clientFor(t, config)
}

func clientFor(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// A user gets a kubeconfig that works as RBAC says, is in the ledger, and is refused once it is
// revoked: on open connections, after a restart, and without harm to the user's next one.
func TestUsers(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "services"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"services"}, Verbs: []string{"get", "list", "watch"}}}}
	if _, err := c.Client(t).RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "developers"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "services"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "developers"}}}
	if _, err := c.Client(t).RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	path, jane := newUser(t, c, "jane", "--group=developers", "--group=a, b", "--expires=2h")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: got %v, %v; want mode 0600", path, info, err)
	}
	kubectl := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), kthwtest.Kubectl(t), append([]string{"--kubeconfig=" + path}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Sprintf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := kubectl("auth", "whoami"); !strings.Contains(out, "jane") || !strings.Contains(out, "developers") || !strings.Contains(out, "a, b") {
		t.Errorf("whoami: got %s", out)
	}
	kthwtest.WaitFor(t, "the right to list services", soon, func() error {
		_, err := jane.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
		return err
	})
	if out := kubectl("get", "secrets"); !strings.Contains(out, "forbidden") {
		t.Errorf("secrets: got %s, want it to be forbidden", out)
	}
	if all := ledger(t, c, "jane"); len(all) != 1 || all[0].State != "valid" || all[0].Signer != "kthwd" || all[0].AskedBy == "" || time.Until(all[0].NotAfter) > 2*time.Hour {
		t.Errorf("ledger: got %+v", all)
	}
	bob := signedUser(t, c, "bob")
	t.Run("signed for a request", func(t *testing.T) {
		if all := ledger(t, c, "bob"); len(all) != 1 || all[0].Signer != certificatesv1.KubeAPIServerClientSignerName || all[0].AskedBy != "admin" || all[0].Request == "" {
			t.Errorf("ledger: got %+v", all)
		}
	})
	t.Run("signed elsewhere", func(t *testing.T) {
		kthwtest.WaitFor(t, "the administrator's certificate in the ledger", soon, func() error {
			if all := ledger(t, c, "admin"); len(all) != 1 || all[0].Signer != "" {
				return fmt.Errorf("got %+v", all)
			}
			return nil
		})
	})
	t.Run("revoked", func(t *testing.T) { wantRevoked(t, c, path, jane) })
	t.Run("others", func(t *testing.T) {
		if _, err := bob.Discovery().ServerVersion(); err != nil {
			t.Errorf("bob: %v", err)
		}
		_, again := newUser(t, c, "jane", "--group=developers")
		if _, err := again.CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Errorf("the next certificate of jane: %v", err)
		}
		if all := ledger(t, c, "jane"); len(all) != 2 {
			t.Errorf("ledger: got %+v, want two certificates", all)
		}
	})
	t.Run("one certificate", func(t *testing.T) {
		serial := ledger(t, c, "bob")[0].Serial
		upper := strings.ToUpper(serial)
		if out := kthwd(t, "kubeconfig", "revoke", upper, "--config=", "--data-dir="+c.Dir); !strings.Contains(out, "revoked  "+serial+" of bob") {
			t.Errorf("revoke: got %s", out)
		}
		wantUnauthorized(t, bob.Clientset)
	})
	t.Run("one certificate of a component", func(t *testing.T) {
		stolen, kept := signedUser(t, c, "system:kube-proxy"), signedUser(t, c, "system:kube-proxy")
		serial := stolen.serial(t)
		if out := kthwd(t, "kubeconfig", "revoke", serial, "--config=", "--data-dir="+c.Dir); !strings.Contains(out, "revoked  "+serial+" of system:kube-proxy") {
			t.Errorf("revoke: got %s", out)
		}
		wantUnauthorized(t, stolen.Clientset)
		if _, err := kept.Discovery().ServerVersion(); err != nil {
			t.Errorf("the other certificate: %v", err)
		}
	})
	stop(t, c, syscall.SIGTERM, 0)
	again(t, c, kthwtest.Options{})
	for _, client := range []*kubernetes.Clientset{jane, bob.Clientset} {
		if _, err := client.Discovery().ServerVersion(); !apierrors.IsUnauthorized(err) { // from the first request on
			t.Errorf("after a restart: got %v, want Unauthorized", err)
		}
	}
}

func wantUnauthorized(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	kthwtest.WaitFor(t, "refusal of the certificate", soon, func() error {
		if _, err := client.Discovery().ServerVersion(); !apierrors.IsUnauthorized(err) {
			return fmt.Errorf("got %v, want Unauthorized", err)
		}
		return nil
	})
}

// wantRevoked revokes jane, whose open watch ends.
func wantRevoked(t *testing.T, c *kthwtest.Controller, path string, jane kubernetes.Interface) {
	open, err := jane.CoreV1().Services("").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Stop()
	if out := kthwd(t, "kubeconfig", "revoke", "jane", "--config=", "--data-dir="+c.Dir); !strings.Contains(out, "Every certificate of jane that begins before now is refused.") {
		t.Errorf("revoke: got %s", out)
	}
	ends(t, "the watch", open)
	wantUnauthorized(t, jane)
	if out, err := exec.CommandContext(t.Context(), kthwtest.Kubectl(t), "--kubeconfig="+path, "get", "services").CombinedOutput(); err == nil || !strings.Contains(string(out), "Unauthorized") && !strings.Contains(string(out), "logged in") {
		t.Errorf("kubectl: got %v, %s", err, out)
	}
	if all := ledger(t, c, "jane"); len(all) != 1 || all[0].State != "revoked" {
		t.Errorf("ledger: got %+v", all)
	}
	hasFinding(t, c, "revoked_certificate_used", "of jane", "127.0.0.1")
}

// A revocation counts also on a controller that is about to stop, for as long as it serves.
func TestRevokedWhileLeaving(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--kube-apiserver-arg=shutdown-delay-duration=10m"}})
	_, jane := newUser(t, c, "jane")
	c.Signal(t, syscall.SIGTERM)
	kthwtest.WaitFor(t, "an API server that leaves", soon, func() error {
		if err := jane.Discovery().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error(); !apierrors.IsInternalError(err) {
			return fmt.Errorf("readyz: got %w", err)
		}
		return nil
	})
	kthwd(t, "kubeconfig", "revoke", "jane", "--config=", "--data-dir="+c.Dir)
	wantUnauthorized(t, jane)
	c.Signal(t, syscall.SIGTERM) // it waits for no delay
	if code := c.Wait(t, soon); code != 1 {
		t.Errorf("got exit code %d, want 1", code)
	}
}

// endlessExec serves an exec that goes on until the client hangs up, as a kubelet does, and returns
// its port.
func endlessExec(t *testing.T) int32 {
	t.Helper()
	kubelet := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
		io.Copy(conn, conn)
	}))
	kubelet.StartTLS()
	t.Cleanup(kubelet.Close)
	return int32(kubelet.Listener.Addr().(*net.TCPAddr).Port)
}

// A connection that is no longer HTTP's ends with the certificate with which it was opened: an
// exec in SPDY, which a client may choose, and which upstream proxies byte by byte.
func TestRevokedUserInExec(t *testing.T) {
	kthwtest.Turn(t, 1)
	// No node's certificate may be for a loopback address, so none is asked for.
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--kube-apiserver-arg=kubelet-certificate-authority="}})
	runPod(t, c.Client(t), "worker", "endless", endlessExec(t))
	c.Kubectl(t, "create", "clusterrolebinding", "developers", "--clusterrole=cluster-admin", "--group=developers")
	open := map[string]*tls.Conn{}
	for _, user := range []string{"jane", "joe"} {
		path, client := newUser(t, c, user, "--group=developers")
		kthwtest.WaitFor(t, "the rights of "+user, soon, func() error {
			_, err := client.CoreV1().Pods("default").Get(t.Context(), "endless", metav1.GetOptions{})
			return err
		})
		open[user] = execIn(t, path)
	}
	kthwd(t, "kubeconfig", "revoke", "jane", "--config=", "--data-dir="+c.Dir)
	_ = open["jane"].SetReadDeadline(time.Now().Add(soon))
	var timeout net.Error
	if _, err := open["jane"].Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the exec of jane goes on: %v", err)
	}
	wantEcho(t, open["joe"])
}

// execIn opens an exec in the pod endless.
func execIn(t *testing.T, kubeconfig string) *tls.Conn {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.NextProtos = []string{"http/1.1"}
	shows, err := rest.TLSConfigFor(config)
	if err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(config.Host, "https://")
	conn, err := tls.Dial("tcp", host, shows)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(soon))
	fmt.Fprintf(conn, "POST /api/v1/namespaces/default/pods/endless/exec?container=main&command=cat&stdin=true HTTP/1.1\r\nHost: %s\r\n"+
		"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n", host)
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("exec: got %+v, %v", answer, err)
	}
	wantEcho(t, conn)
	return conn
}

// wantEcho wants each byte back that it sends.
func wantEcho(t *testing.T, conn *tls.Conn) {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(soon))
	got := make([]byte, 4)
	if _, err := conn.Write([]byte("echo")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "echo" {
		t.Fatalf("got %q, %v", got, err)
	}
}

// signed is a user whose certificate was signed for a request.
type signed struct {
	*kubernetes.Clientset
	certificate []byte // PEM
}

// serial returns the serial number as the ledger has it.
func (s signed) serial(t *testing.T) string {
	t.Helper()
	block, _ := pem.Decode(s.certificate)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert.SerialNumber.Text(16)
}

// signedUser gets a certificate through the API, which the administrator approves.
func signedUser(t *testing.T, c *kthwtest.Controller, user string) signed {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: user}}, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	requests := c.Client(t).CertificatesV1().CertificateSigningRequests()
	csr, err := requests.Create(t.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "user-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: certificatesv1.KubeAPIServerClientSignerName, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}}
	if csr, err = requests.UpdateApproval(t.Context(), csr.Name, csr, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, "the certificate of "+user, soon, func() error {
		if csr, err = requests.Get(t.Context(), csr.Name, metav1.GetOptions{}); err != nil || len(csr.Status.Certificate) == 0 {
			return fmt.Errorf("none yet: %w", err)
		}
		return nil
	})
	config := rest.AnonymousClientConfig(c.RESTConfig(t))
	config.CertData, config.KeyData = csr.Status.Certificate, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	return signed{clientFor(t, config), csr.Status.Certificate}
}

// What is wrong is said, and leaves no file and no line in the ledger.
func TestUsersRefused(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	if _, err := c.Client(t).CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "worker-0"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(t.TempDir(), "there.kubeconfig")
	if err := os.WriteFile(full, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		args  []string
		code  int
		hint  string
		parts []string
	}{
		{"system:masters", []string{"create", "jane", "--group=system:masters"}, 2, "clusterrolebinding", []string{"system:masters", "super-admin.kubeconfig"}},
		{"another group of Kubernetes", []string{"create", "jane", "--group=system:nodes"}, 2, "choose another name", []string{"system:nodes", "Kubernetes' own"}},
		{"a user of Kubernetes", []string{"create", "system:kube-scheduler"}, 2, "choose another name", []string{"Kubernetes' own"}},
		{"a node's user", []string{"create", "system:node:w1"}, 2, "kthwd node token create", []string{"Kubernetes' own"}},
		{"a controller's certificate", []string{"create", "kubernetes"}, 2, "choose another name", []string{"control plane itself"}},
		{"the administrator", []string{"create", "admin"}, 2, "choose another name", []string{"control plane itself"}},
		{"a controller's name", []string{"create", "c0"}, 2, "c0-user", []string{"name of a controller"}},
		{"a node's name", []string{"create", "worker-0"}, 2, "worker-0-user", []string{"name of a node"}},
		{"no name", []string{"create", ""}, 2, "-", []string{"want a name"}},
		{"a name with an escape", []string{"create", "a\x1b[2J"}, 2, "-", []string{"can be printed"}},
		{"a long name", []string{"create", strings.Repeat("a", 65)}, 2, "-", []string{"65 bytes"}},
		{"a name that is no file's", []string{"create", "a/b"}, 2, "--out", []string{"name of a file"}},
		{"longer than the CA", []string{"create", "jane", "--expires=200000h"}, 1, "shorter --expires", []string{"ca.pem", "ends on"}},
		{"too short", []string{"create", "jane", "--expires=1s"}, 2, "-", []string{"--expires 1s is too short"}},
		{"no URL", []string{"create", "jane", "--server=10.0.1.48"}, 2, "-", []string{"no https URL"}},
		{"a file that exists", []string{"create", "jane", "--out=" + full}, 1, "--replace", []string{"exists"}},
		{"no directory", []string{"create", "jane", "--out=" + filepath.Join(full, "x")}, 1, "-", []string{"not a directory"}},
		{"a directory that cannot be written", []string{"create", "jane", "--out=/proc/self/jane.kubeconfig"}, 1, "-", []string{"/proc/self/"}},
		{"revoke nobody", []string{"revoke", "nobody"}, 1, "--unlisted", []string{"nobody: the ledger has no certificate"}},
		{"revoke a node", []string{"revoke", "system:node:worker-0"}, 2, "kthwd node remove worker-0", []string{"is a node"}},
		{"revoke a program", []string{"revoke", "system:kube-scheduler", "--unlisted"}, 2, "security.md", []string{"part of the control plane"}},
		{"revoke a component", []string{"revoke", "system:kube-proxy", "--unlisted"}, 2, "serial number", []string{"is a component of Kubernetes"}},
		{"revoke the administrator", []string{"revoke", "admin", "--unlisted"}, 2, "serial number", []string{"on every controller"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := append([]string{"kubeconfig"}, tt.args...)
			runToEnd(t, nil, append(cmd, "--config=", "--data-dir="+c.Dir)...).check(t, tt.code, tt.hint, tt.parts...)
		})
	}
	for _, user := range []string{"jane", "worker-0", "c0", "a/b"} {
		if all := ledger(t, c, user, "--all"); len(all) != 0 {
			t.Errorf("ledger: got %+v", all)
		}
	}
	if data, err := os.ReadFile(full); err != nil || string(data) != "mine" {
		t.Errorf("%s: got %q, %v", full, data, err)
	}
	t.Run("the administrator's own certificate", func(t *testing.T) {
		var all []ledgerEntry
		kthwtest.WaitFor(t, "the administrator's certificate in the ledger", soon, func() error {
			if all = ledger(t, c, "admin"); len(all) == 0 {
				return fmt.Errorf("none yet")
			}
			return nil
		})
		runToEnd(t, nil, "kubeconfig", "revoke", all[0].Serial, "--config=", "--data-dir="+c.Dir).check(t, 2, "kthwd pki renew admin", "with which the verbs here work")
	})
	t.Run("standard output", func(t *testing.T) {
		out := kthwd(t, "kubeconfig", "create", "jane", "--out=-", "--config=", "--data-dir="+c.Dir)
		if config, err := clientcmd.RESTConfigFromKubeConfig([]byte(out)); err != nil || len(config.KeyData) == 0 {
			t.Errorf("got %v, %v", config, err)
		}
		kthwd(t, "kubeconfig", "create", "jane", "--out="+full, "--replace", "--config=", "--data-dir="+c.Dir)
	})
	t.Run("no key of the CA", func(t *testing.T) {
		key := filepath.Join(c.Dir, "ca-key.pem")
		if err := os.Rename(key, filepath.Join(t.TempDir(), "ca-key.pem")); err != nil {
			t.Fatal(err)
		}
		runToEnd(t, nil, "kubeconfig", "create", "ann", "--out=-", "--config=", "--data-dir="+c.Dir).check(t, 1, "has the key", "ca-key.pem", "the key of the CA is not here")
	})
	stop(t, c, syscall.SIGTERM, 0)
	runToEnd(t, nil, "kubeconfig", "create", "ann", "--out=-", "--config=", "--data-dir="+c.Dir).check(t, 1, "-", "no etcd member runs")
}
