package fault

import (
	"bytes"
	"context"
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
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/certificate"

	"kthwd/test/kthwtest"
)

// nodeToken is what kthwd node token create -o json prints.
type nodeToken struct {
	Token  string   `json:"token"`
	Server string   `json:"server"`
	Hashes []string `json:"caHashes"`
}

func (n nodeToken) id() string { return n.Token[:6] }

// kthwd runs a verb that has to succeed, and returns its output.
func kthwd(t *testing.T, args ...string) string {
	t.Helper()
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), args...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("kthwd %s: %v\n%s%s", strings.Join(args, " "), err, &out, &stderr)
	}
	return out.String()
}

// createToken makes a token on the controller.
func createToken(t *testing.T, c *kthwtest.Controller, flags ...string) (n nodeToken) {
	t.Helper()
	out := kthwd(t, append([]string{"node", "token", "create", "-o=json", "--config=", "--data-dir=" + c.Dir,
		"--bind-address=" + c.Address, "--advertise-address=" + c.Address, fmt.Sprintf("--secure-port=%d", c.Ports.Secure)}, flags...)...)
	if err := json.Unmarshal([]byte(out), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// worker is a machine that joins, with the kubelet's own code for certificates.
type worker struct {
	name, dir string
}

// args is the command line of its join. The token is in a file.
func (w worker) args(t *testing.T, n nodeToken) []string {
	t.Helper()
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(n.Token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{
		"node", "join", "--server=" + n.Server, "--ca-hash=" + strings.Join(n.Hashes, ","), "--token-file=" + file, "--name=" + w.name,
		"--kubelet-dir=" + filepath.Join(w.dir, "kubelet"), "--ca-file=" + filepath.Join(w.dir, "ca.pem"), "--unit=" + filepath.Join(w.dir, "kubelet.service"),
	}
}

// manager gets a certificate as the kubelet does, and renews it.
func (w worker) manager(t *testing.T, signer, cn string, config func(*tls.Certificate) (*rest.Config, error), dns []string, ips ...net.IP) certificate.Manager {
	t.Helper()
	store, err := certificate.NewFileStore(filepath.Base(signer), filepath.Join(w.dir, "pki"), filepath.Join(w.dir, "pki"), "", "")
	if err != nil {
		t.Fatal(err)
	}
	usage := certificatesv1.UsageClientAuth
	if signer == certificatesv1.KubeletServingSignerName {
		usage = certificatesv1.UsageServerAuth
	}
	m, err := certificate.NewManager(&certificate.Config{
		ClientsetFn: func(current *tls.Certificate) (kubernetes.Interface, error) {
			c, err := config(current)
			if err != nil {
				return nil, err
			}
			return kubernetes.NewForConfig(c)
		},
		Template:   &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn, Organization: []string{"system:nodes"}}, DNSNames: dns, IPAddresses: ips},
		SignerName: signer, CertificateStore: store,
		Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, usage},
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Start()
	t.Cleanup(m.Stop)
	return m
}

// bootstrap gets the first certificate with the kubeconfig that the join has written, and
// returns the configuration of a client with it.
func (w worker) bootstrap(t *testing.T) *rest.Config {
	t.Helper()
	first, err := clientcmd.BuildConfigFromFlags("", filepath.Join(w.dir, "kubelet", "bootstrap.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(w.dir, "pki"), 0o700); err != nil {
		t.Fatal(err)
	}
	m := w.manager(t, certificatesv1.KubeAPIServerClientKubeletSignerName, "system:node:"+w.name, func(*tls.Certificate) (*rest.Config, error) { return first, nil }, nil)
	kthwtest.WaitFor(t, "client certificate of "+w.name, soon, func() error {
		if m.Current() == nil {
			return fmt.Errorf("none yet")
		}
		return nil
	})
	config := rest.AnonymousClientConfig(first)
	config.CertFile = filepath.Join(w.dir, "pki", "kube-apiserver-client-kubelet-current.pem")
	config.KeyFile = config.CertFile
	return config
}

// register makes the Node, as the kubelet does, with its own certificate.
func (w worker) register(t *testing.T, config *rest.Config, address string) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	node, err := client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}, {Type: corev1.NodeHostName, Address: w.name}}
	kthwtest.WaitFor(t, "addresses of "+w.name, soon, func() error {
		_, err := client.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			fresh, errGet := client.CoreV1().Nodes().Get(t.Context(), w.name, metav1.GetOptions{})
			if errGet == nil {
				fresh.Status.Addresses = node.Status.Addresses
				node = fresh
			}
		}
		return err
	})
	return client
}

// A machine joins with one command on each side. It gets its certificates as a kubelet does,
// the serving one for its own addresses only, and none of them is good once it is removed.
func TestWorker(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	n := createToken(t, c, "--name=worker-0", "--cidr=10.9.0.0/24")
	w := worker{name: "worker-0", dir: filepath.Join(t.TempDir(), "w0")}
	if out := kthwd(t, append(w.args(t, n), "--plan")...); !strings.Contains(out, "make  "+filepath.Join(w.dir, "ca.pem")) {
		t.Errorf("--plan: got\n%s", out)
	}
	if left := tree(t, w.dir); left != w.dir {
		t.Errorf("--plan has written %s", left)
	}
	if out := kthwd(t, w.args(t, n)...); strings.Contains(out, n.Token) || !strings.Contains(out, "start its kubelet") {
		t.Errorf("join: got\n%s", out)
	}
	for path, mode := range map[string]os.FileMode{"ca.pem": 0o644, "kubelet/bootstrap.kubeconfig": 0o600, "kubelet/kubelet-config.yaml": 0o644, "kubelet.service": 0o644} {
		if info, err := os.Stat(filepath.Join(w.dir, path)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: got %v, %v; want mode %v", path, info, err, mode)
		}
	}
	config := w.bootstrap(t)
	client := w.register(t, config, "10.9.0.31")

	with := func(*tls.Certificate) (*rest.Config, error) { return config, nil }
	serving := w.manager(t, certificatesv1.KubeletServingSignerName, "system:node:worker-0", with, []string{"worker-0"}, net.ParseIP("10.9.0.31"))
	kthwtest.WaitFor(t, "serving certificate", soon, func() error {
		if serving.Current() == nil {
			return fmt.Errorf("none yet")
		}
		return serving.Current().Leaf.VerifyHostname("10.9.0.31")
	})
	t.Run("token is used up", func(t *testing.T) {
		kthwtest.WaitFor(t, "no token", soon, func() error {
			if out := kthwd(t, "node", "token", "list", "--config=", "--data-dir="+c.Dir); strings.Contains(out, n.id()) {
				return fmt.Errorf("got %s", out)
			}
			return nil
		})
		tried := refusedToken(t, n)
		tried.check(t, 1, "kthwd node token create", "knows no token "+n.id())
	})
	t.Run("serving certificates that are not approved", func(t *testing.T) { wantPending(t, c, w, client) })
	t.Run("removed", func(t *testing.T) { wantRemoved(t, c, w, config) })
}

// refusedToken tries to join until the API server has heard that there is no such token.
func refusedToken(t *testing.T, n nodeToken) (tried outcome) {
	t.Helper()
	kthwtest.WaitFor(t, "the API server to hear of it", soon, func() error {
		if tried = runToEnd(t, nil, worker{name: "worker-1", dir: t.TempDir()}.args(t, n)...); !strings.Contains(tried.stderr, "knows no token") {
			return errors.New(tried.stderr)
		}
		return nil
	})
	return tried
}

// wantPending asks for serving certificates that are not the node's.
func wantPending(t *testing.T, c *kthwtest.Controller, w worker, node kubernetes.Interface) {
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "worker-9"}}
	if _, err := c.Client(t).CoreV1().Nodes().Create(t.Context(), other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	address := []byte(`{"status":{"addresses":[{"type":"InternalIP","address":"10.9.0.99"}]}}`)
	if _, err := c.Client(t).CoreV1().Nodes().PatchStatus(t.Context(), "worker-9", address); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		dns  []string
		ip   string
		want string
	}{
		"another node's address": {nil, "10.9.0.99", "10.9.0.99 is an address of the node worker-9"},
		"another node's name":    {[]string{"worker-9"}, "", "worker-9 is the node worker-9"},
		"outside the range":      {nil, "10.8.0.1", "10.8.0.1 is not in 10.9.0.0/24"},
		"a service":              {nil, "10.32.0.1", "API server"},
		"a controller's name":    {[]string{"c0"}, "", "c0 is the name of a controller"},
	} {
		t.Run(name, func(t *testing.T) {
			var ips []net.IP
			if tt.ip != "" {
				ips = append(ips, net.ParseIP(tt.ip))
			}
			csr := nodeRequest(t, certificatesv1.KubeletServingSignerName, "system:node:"+w.name, certificatesv1.UsageServerAuth, tt.dns, ips...)
			csr, err := node.CertificatesV1().CertificateSigningRequests().Create(t.Context(), csr, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			kthwtest.WaitFor(t, "an Event", soon, func() error {
				events, err := c.Client(t).CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + csr.Name})
				if err != nil || len(events.Items) == 0 {
					return fmt.Errorf("none: %w", err)
				}
				if e := events.Items[0]; e.Reason != "NodeCertificateNotApproved" || !strings.Contains(e.Message, tt.want) {
					return fmt.Errorf("got %s: %s", e.Reason, e.Message)
				}
				return nil
			})
			csr, err = c.Client(t).CertificatesV1().CertificateSigningRequests().Get(t.Context(), csr.Name, metav1.GetOptions{})
			if err != nil || len(csr.Status.Conditions) > 0 {
				t.Errorf("got %+v, %v; want it pending", csr.Status, err)
			}
		})
	}
	hasFinding(t, c, "node_certificate_pending", "is not approved")
}

// nodeRequest is a request for a certificate with a new key.
func nodeRequest(t *testing.T, signer, cn string, usage certificatesv1.KeyUsage, dns []string, ips ...net.IP) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: cn, Organization: []string{"system:nodes"}}, DNSNames: dns, IPAddresses: ips,
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: signer,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, usage},
		},
	}
}

// wantRemoved removes the node: its open watch ends, and its certificate is refused, also
// after a restart and for renewals.
func wantRemoved(t *testing.T, c *kthwtest.Controller, w worker, config *rest.Config) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	open, err := client.CoreV1().Services("").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Stop()
	if out := kthwd(t, "node", "list", "--config=", "--data-dir="+c.Dir); !strings.Contains(out, w.name) {
		t.Errorf("node list: got\n%s", out)
	}
	if out := kthwd(t, "node", "remove", w.name, "--drain", "--config=", "--data-dir="+c.Dir); !strings.Contains(out, "removed  "+w.name) {
		t.Errorf("node remove: got\n%s", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for ended := false; !ended; {
		select {
		case _, ok := <-open.ResultChan():
			ended = !ok
		case <-ctx.Done():
			t.Fatal("the watch of the removed node is still open")
		}
	}
	refused := func() error {
		_, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
		if !apierrors.IsUnauthorized(err) {
			return fmt.Errorf("got %v, want Unauthorized", err)
		}
		return nil
	}
	kthwtest.WaitFor(t, "refusal of the certificate", soon, refused)
	if _, err := c.Client(t).CoreV1().Nodes().Get(t.Context(), w.name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Node: got %v, want none", err)
	}
	anew := worker{name: w.name, dir: filepath.Join(t.TempDir(), "anew")}
	runToEnd(t, nil, anew.args(t, createToken(t, c))...).check(t, 1, "-", "the node worker-0 was removed at", "join it after")
	runToEnd(t, nil, "node", "remove", w.name, "--config=", "--data-dir="+c.Dir).check(t, 1, "kthwd node list", "there is no node worker-0")
	stop(t, c, syscall.SIGTERM, 0)
	again(t, c, kthwtest.Options{})
	if err := refused(); err != nil { // from the first request on
		t.Error(err)
	}
}

// What is wrong is said before anything is written.
func TestWorkerRefused(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	n := createToken(t, c, "--nodes=5")
	between := inBetween(t, n)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	deleted := createToken(t, c)
	kthwd(t, "node", "token", "delete", deleted.id(), "--config=", "--data-dir="+c.Dir)
	refusedToken(t, deleted)
	expired := createToken(t, c)
	expire(t, c, expired)
	refusedToken(t, expired)
	for _, tt := range []struct {
		name  string
		token func(nodeToken) nodeToken
		args  []string
		code  int
		hint  string
		parts []string
	}{
		{"malformed token", func(n nodeToken) nodeToken { n.Token = "abc"; return n }, nil, 2, "kthwd node token create", []string{"this is no token"}},
		{"unknown token", func(n nodeToken) nodeToken { n.Token = "aaaaaa.bbbbbbbbbbbbbbbb"; return n }, nil, 1, "kthwd node token create", []string{"knows no token aaaaaa"}},
		{"deleted token", func(nodeToken) nodeToken { return deleted }, nil, 1, "kthwd node token create", []string{"knows no token " + deleted.id()}},
		{"expired token", func(nodeToken) nodeToken { return expired }, nil, 1, "kthwd node token create", []string{"knows no token " + expired.id()}},
		{"another secret", func(n nodeToken) nodeToken { n.Token = n.id() + ".bbbbbbbbbbbbbbbb"; return n }, nil, 1, "compare the token", []string{"somebody is in between"}},
		{"another hash", func(n nodeToken) nodeToken { n.Hashes = []string{"sha256:" + strings.Repeat("a", 64)}; return n }, nil, 1, "compare --ca-hash", []string{"somebody is in between"}},
		{"no hash", func(n nodeToken) nodeToken { n.Hashes = nil; return n }, nil, 2, "-", []string{"--ca-hash"}},
		{"somebody in between", func(n nodeToken) nodeToken { n.Server = between; return n }, nil, 1, "look who answers", []string{"somebody is in between"}},
		{"no server", func(n nodeToken) nodeToken { n.Server = "https://" + closed.Addr().String(); return n }, nil, 1, "load balancer", []string{"connection refused"}},
		{"not valid for the name", func(n nodeToken) nodeToken { n.Server = fmt.Sprintf("https://127.0.0.2:%d", c.Ports.Secure); return n }, nil, 1, "-", nil},
		{"a controller's name", func(n nodeToken) nodeToken { return n }, []string{"--name=c0"}, 1, "another --name", []string{"c0 is the name of a controller"}},
		{"the API server's name", func(n nodeToken) nodeToken { return n }, []string{"--name=kubernetes"}, 1, "another --name", []string{"kubernetes is a name of the API server"}},
		{"capitals", func(n nodeToken) nodeToken { return n }, []string{"--name=Worker"}, 2, "--name", []string{"no name of a node"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := worker{name: "worker-1", dir: filepath.Join(t.TempDir(), "w")}
			args := append(w.args(t, tt.token(n)), tt.args...)
			runToEnd(t, nil, args...).check(t, tt.code, tt.hint, tt.parts...)
			if left := tree(t, w.dir); left != w.dir {
				t.Errorf("written: %s", left)
			}
		})
	}
	t.Run("a name that exists", func(t *testing.T) {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "worker-1"}}
		if _, err := c.Client(t).CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w := worker{name: "worker-1", dir: filepath.Join(t.TempDir(), "w")}
		runToEnd(t, nil, w.args(t, n)...).check(t, 1, "-", "there is a node worker-1 already")
	})
	t.Run("a token asks for nothing else", func(t *testing.T) {
		client := bearer(t, c, n)
		for _, signer := range []string{certificatesv1.KubeAPIServerClientSignerName, certificatesv1.KubeletServingSignerName} {
			csr := nodeRequest(t, signer, "system:node:worker-2", certificatesv1.UsageClientAuth, nil)
			if _, err := client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), csr, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
				t.Errorf("%s: got %v, want Forbidden", signer, err)
			}
		}
		if _, err := client.CoreV1().Secrets("kube-system").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("secrets: got %v, want Forbidden", err)
		}
	})
	t.Run("without credentials", func(t *testing.T) {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
		for path, want := range map[string]int{"/kthwd/cluster-info": 401, "/kthwd/cluster-info?token=aaaaaa": 401, "/kthwd/cluster-info?token=" + n.id(): 200, "/api/v1/namespaces/kube-public/configmaps/cluster-info": 401} {
			resp, err := client.Get(n.Server + path)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s: got %d, want %d", path, resp.StatusCode, want)
			}
		}
	})
}

func bearer(t *testing.T, c *kthwtest.Controller, n nodeToken) kubernetes.Interface {
	t.Helper()
	config := rest.AnonymousClientConfig(c.RESTConfig(t))
	config.BearerToken = n.Token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// expire makes a token of the past.
func expire(t *testing.T, c *kthwtest.Controller, n nodeToken) {
	t.Helper()
	secrets := c.Client(t).CoreV1().Secrets("kube-system")
	secret, err := secrets.Get(t.Context(), "bootstrap-token-"+n.id(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret.Data["expiration"] = []byte(time.Now().Add(-time.Minute).UTC().Format(time.RFC3339))
	if _, err := secrets.Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, "the end of the signature", soon, func() error {
		info, err := c.Client(t).CoreV1().ConfigMaps("kube-public").Get(t.Context(), "cluster-info", metav1.GetOptions{})
		if err == nil && info.Data["jws-kubeconfig-"+n.id()] != "" {
			err = fmt.Errorf("still signed with %s", n.id())
		}
		return err
	})
}

// inBetween is somebody who passes on the cluster's description, and would take the token.
func inBetween(t *testing.T, n nodeToken) string {
	t.Helper()
	target, err := url.Parse(n.Server)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			if r.In.Header.Get("Authorization") != "" {
				t.Error("the token was shown to somebody in between")
			}
		},
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
	s := httptest.NewTLSServer(proxy)
	t.Cleanup(s.Close)
	return s.URL
}

// Where tokens would not work, none is made.
func TestNoNodeToken(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--kube-apiserver-arg=enable-bootstrap-token-auth=false"}})
	create := func(flags ...string) outcome {
		return runToEnd(t, nil, append([]string{"node", "token", "create", "--config=", "--data-dir=" + c.Dir, "--bind-address=" + c.Address,
			"--advertise-address=" + c.Address, fmt.Sprintf("--secure-port=%d", c.Ports.Secure)}, flags...)...)
	}
	create().check(t, 1, "--kube-apiserver-arg=enable-bootstrap-token-auth=true", "accepts no bootstrap tokens")
	create("--ttl=1s").check(t, 2, "-", "--ttl 1s: want 1m0s to 168h0m0s")
	create("--cidr=10.0.1.300/24").check(t, 2, "-", "no range of addresses")
	create("--server=http://10.0.1.48").check(t, 2, "-", "no https URL")
	secrets, err := c.Client(t).CoreV1().Secrets("kube-system").List(t.Context(), metav1.ListOptions{FieldSelector: "type=bootstrap.kubernetes.io/token"})
	if err != nil || len(secrets.Items) > 0 {
		t.Errorf("tokens: got %v, %v; want none", secrets.Items, err)
	}
	defer away(t, c.Dir, "ca-key.pem")()
	create().check(t, 1, "kthwd pki node", "ca-key.pem is kept elsewhere")
	runToEnd(t, nil, "node", "token", "delete", "nonsense", "--config=", "--data-dir="+c.Dir).check(t, 2, "kthwd node token list", "no ID of a token")
	runToEnd(t, nil, "node", "join", "--from="+filepath.Join(c.Dir, "ca.pem")).check(t, 2, "--token-file", "not the output of kthwd node token create")
	runToEnd(t, nil, "node", "join", "--server=https://10.0.1.48:6443").check(t, 2, "--token-file=-", "no token given")
}
