package attack

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/test/kthwtest"
)

// workersAddress is that of the attacker where it has a network: a worker that was taken over.
const workersAddress = "10.77.0.99"

var rangeAll = []byte(fmt.Sprintf(`{"key":%q,"range_end":%q,"count_only":true}`,
	base64.StdEncoding.EncodeToString([]byte("/registry/")), base64.StdEncoding.EncodeToString([]byte("/registry0"))))

// Tries each certificate that the cluster's CA signs (by kthwd, through the API or by
// hand) on etcd's two ports. etcd answers only controllers, by its own CA.
func TestEtcdAnswersControllersOnly(t *testing.T) {
	t.Parallel()
	c := use(t)
	node := t.TempDir()
	if code, out := kthwd(t, "pki", "node", "w1", workersAddress, "--data-dir="+c.Dir, "--config=", "--server=https://10.77.0.1:6443", "--output-dir="+node); code != 0 {
		t.Fatalf("kthwd pki node: exit code %d\n%s", code, out)
	}
	nodeCert, err := tls.LoadX509KeyPair(filepath.Join(node, "w1.pem"), filepath.Join(node, "w1-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	user, err := c.approve(t, "dev-user")
	if err != nil {
		t.Fatal(err)
	}
	certs := map[string]tls.Certificate{
		"a worker's, as kthwd pki node makes it": nodeCert,
		"a worker's at this address":             c.ca.sign(t, pkix.Name{CommonName: "system:node:w2", Organization: []string{"system:nodes"}}, "w2", attacker.source()),
		"a worker's with a controller's hosts":   c.ca.sign(t, pkix.Name{CommonName: "system:node:w3", Organization: []string{"system:nodes"}}, "kubernetes.default.svc", "kubernetes", c.Address, attacker.source()),
		"a client's called kubernetes":           c.ca.sign(t, pkix.Name{CommonName: "kubernetes", Organization: []string{"Kubernetes"}}, "kubernetes.default.svc", c.Address, attacker.source()),
		"a user's, approved":                     user,
		"an administrator's":                     c.ofKubeconfig(t, "admin"),
		"kube-controller-manager's":              c.ofKubeconfig(t, "kube-controller-manager"),
		"kube-scheduler's":                       c.ofKubeconfig(t, "kube-scheduler"),
		"the health bridge's":                    c.pair(t, "kthwd-health"),
		"the front proxy's":                      c.pair(t, "front-proxy-client"),
		"none":                                   {},
	}
	if !reviewed { // it has one CA, and one certificate of a controller
		certs["one of etcd's CA for another name"] = c.etcdCA.sign(t, pkix.Name{CommonName: "backup"}, c.Address, attacker.source())
		certs["the API server's, kubernetes.pem"] = c.pair(t, "kubernetes")
	}
	for name, cert := range certs {
		t.Run(name, func(t *testing.T) {
			for _, try := range []struct {
				method, path string
				port         int
				body         []byte
			}{
				{http.MethodPost, "/v3/kv/range", c.Ports.EtcdClient, rangeAll},
				{http.MethodGet, "/version", c.Ports.EtcdClient, nil},
				{http.MethodGet, "/metrics", c.Ports.EtcdClient, nil},
				{http.MethodGet, "/members", c.Ports.EtcdPeer, nil},
				{http.MethodPost, "/raft", c.Ports.EtcdPeer, nil},
			} {
				code, body, err := c.ask(t.Context(), cert, try.method, try.port, try.path, try.body)
				if err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
					t.Errorf("%s %s of port %d: got %d %.80q, %v; want a refusal by its TLS", try.method, try.path, try.port, code, body, err)
				}
			}
		})
	}
	t.Run("a controller's", func(t *testing.T) {
		own := c.ofController(t)
		// Several times: etcd's own gateway connects to one of its listeners by chance.
		for range 3 {
			if code, body, err := c.sendFrom(t.Context(), machine{}, own, http.MethodPost, c.Ports.EtcdClient, "/v3/kv/range", rangeAll, nil); err != nil || code != http.StatusOK || !strings.Contains(body, `"count":"`) {
				t.Errorf("etcd's HTTP API: got %d %.200q, %v", code, body, err)
			}
		}
		// From its own address, which its certificate has: etcd asks that of a peer.
		if code, body, err := c.sendFrom(t.Context(), machine{}, own, http.MethodGet, c.Ports.EtcdPeer, "/members", nil, nil); err != nil || code != http.StatusOK {
			t.Errorf("/members of the peer port: got %d %.200q, %v", code, body, err)
		}
		if answer, err := c.Etcd(t).Get(t.Context(), "/registry/"); err != nil || answer.Header == nil {
			t.Errorf("etcd's client with etcd.pem: %v", err)
		}
	})
}

// H1: heartbeats of a leader that is no member, in ever higher terms, stop all writes of an etcd
// that takes them. The forger knows the IDs of the cluster and of the member.
func TestForgedRaftMessages(t *testing.T) {
	t.Parallel()
	c := use(t)
	members, err := c.Etcd(t).MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const term, forger, count = 1_000_000, 0x12345, 50
	worker := c.ca.sign(t, pkix.Name{CommonName: "system:node:w1", Organization: []string{"system:nodes"}}, "w1", attacker.source())
	header := http.Header{
		"X-Etcd-Cluster-Id": {fmt.Sprintf("%x", members.Header.ClusterId)}, "X-Server-From": {fmt.Sprintf("%x", forger)},
		"X-Server-Version": {"3.6.0"}, "X-Min-Cluster-Version": {"3.0.0"},
	}
	taken := 0
	for i := range uint64(count) {
		message, err := proto.Marshal(&raftpb.Message{Type: raftpb.MessageType_MsgHeartbeat.Enum(), To: proto.Uint64(members.Header.MemberId), From: proto.Uint64(forger), Term: proto.Uint64(term + i)})
		if err != nil {
			t.Fatal(err)
		}
		if code, body, err := c.send(t.Context(), worker, http.MethodPost, c.Ports.EtcdPeer, "/raft", message, header); err == nil {
			if taken++; taken == 1 {
				t.Errorf("the peer port answers a forged heartbeat with %d %.80q", code, body)
			}
		}
	}
	now := func() uint64 {
		answer, err := c.Etcd(t).Get(t.Context(), "/", clientv3.WithSerializable())
		if err != nil {
			t.Fatal(err)
		}
		return answer.Header.RaftTerm
	}
	if taken > 0 { // it may take a moment to have its effect
		kthwtest.WaitFor(t, "the forger's term", kthwtest.Soon, func() error {
			if is := now(); is < term {
				return fmt.Errorf("it is %d", is)
			}
			return nil
		})
	}
	if is := now(); taken > 0 || is >= term {
		t.Errorf("%d of %d forged heartbeats were answered, and etcd's term is %d", taken, count, is)
	}
}

// With one CA, a certificate of it that has a controller's name is all of etcd. After the
// move to a CA of etcd's own it is nothing there.
func TestSplitClosesEtcd(t *testing.T) {
	t.Parallel()
	dir, ports := filepath.Join(t.TempDir(), "c0"), kthwtest.FreePorts(t, here)
	if code, out := kthwd(t, "pki", "init", "--config=", "--data-dir="+dir, "--bind-address="+here, "--advertise-address="+here, fmt.Sprintf("--secure-port=%d", ports.Secure)); code != 0 {
		t.Fatalf("kthwd pki init: exit code %d\n%s", code, out)
	}
	for _, name := range []string{"etcd-ca.pem", "etcd-ca-key.pem", "etcd.pem", "etcd-key.pem"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	c := &cluster{Controller: kthwtest.Start(t, kthwtest.Options{Dir: dir, Address: here, Ports: &ports}), ca: readCA(t, dir, "ca")}
	forged := c.ca.sign(t, pkix.Name{CommonName: "kubernetes"}, c.Address, attacker.source())
	reads := func(cert tls.Certificate) error {
		code, body, err := c.ask(t.Context(), cert, http.MethodPost, c.Ports.EtcdClient, "/v3/kv/range", rangeAll)
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d %.100q", code, body)
		}
		return err
	}
	if err := reads(forged); err != nil {
		t.Errorf("before the move: got %v; want it accepted, or this test shows nothing", err)
	}
	kinds := c.kinds(t)
	c.answersOnly(t, kinds, "kubernetes.pem")
	if code, out := kthwd(t, "pki", "split-etcd-ca", "--config=", "--data-dir="+dir); code != 0 || !strings.Contains(out, "next  restart kthwd here, and etcd has a CA of its own") {
		t.Fatalf("kthwd pki split-etcd-ca: exit code %d\n%s", code, out)
	}
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, kthwtest.Soon)
	c.Controller, c.etcdCA = kthwtest.Start(t, kthwtest.Options{Dir: dir, Address: here, Ports: &ports}), readCA(t, dir, "etcd-ca")
	for name, cert := range map[string]tls.Certificate{"a certificate called kubernetes": forged, "kubernetes.pem": c.pair(t, "kubernetes")} {
		if err := reads(cert); err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
			t.Errorf("%s after the move: got %v, want a refusal by etcd's TLS", name, err)
		}
	}
	if err := reads(c.pair(t, "etcd")); err != nil {
		t.Errorf("etcd.pem after the move: %v", err)
	}
	for _, name := range []string{"etcd", "etcd-ca"} {
		kinds[name+".pem"] = c.pair(t, name)
	}
	c.answersOnly(t, kinds, "etcd.pem")
}

// kinds are certificates of every kind that kthwd makes, by file: all of the data directory, those
// of other verbs, and those that the signers of Kubernetes give for a request.
func (c *cluster) kinds(t *testing.T) map[string]tls.Certificate {
	t.Helper()
	out := t.TempDir()
	for _, args := range [][]string{
		{"pki", "node", "w1", workersAddress, "--server=https://10.77.0.1:6443", "--output-dir=" + out},
		{"kubeconfig", "create", "jane", "--group=developers", "--out=" + filepath.Join(out, "jane.kubeconfig")},
		{"kubeconfig", "create", "kthwd-lb", "--load-balancer", "--out=" + filepath.Join(out, "kthwd-lb.kubeconfig")},
	} {
		if code, said := kthwd(t, append(args, "--config=", "--data-dir="+c.Dir)...); code != 0 {
			t.Fatalf("kthwd %q: exit code %d\n%s", args, code, said)
		}
	}
	node := pkix.Name{CommonName: "system:node:w1", Organization: []string{"system:nodes"}}
	all := map[string]tls.Certificate{
		"a kubelet's of a request":           c.ca.sign(t, node),
		"a kubelet's for serving":            c.ca.sign(t, node, "w1", attacker.source()),
		"a user's of a request":              c.ca.sign(t, pkix.Name{CommonName: "dev-user"}),
		"a legacy request's":                 c.ca.sign(t, pkix.Name{CommonName: "kubernetes.default"}, "svc.example.com"),
		"an administrator's, system:masters": c.ca.sign(t, pkix.Name{CommonName: "kubernetes-admin", Organization: []string{"system:masters"}}),
	}
	for _, dir := range []string{c.Dir, out} {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			path := filepath.Join(dir, f.Name())
			if name, ok := strings.CutSuffix(path, "-key.pem"); ok {
				cert, err := tls.LoadX509KeyPair(name+".pem", path)
				if err != nil {
					t.Fatal(err)
				}
				all[filepath.Base(name)+".pem"] = cert
			}
			if filepath.Ext(path) == ".kubeconfig" {
				all[f.Name()] = certOf(t, path)
			}
		}
	}
	for _, name := range []string{"ca.pem", "kubernetes.pem", "service-account.pem", "kthwd-health.pem", "front-proxy-ca.pem", "front-proxy-client.pem", "admin.kubeconfig", "super-admin.kubeconfig",
		"kube-controller-manager.kubeconfig", "kube-scheduler.kubeconfig", "w1.pem", "w1.kubeconfig", "jane.kubeconfig", "kthwd-lb.kubeconfig"} {
		if _, there := all[name]; !there {
			t.Errorf("%s is not tried", name)
		}
	}
	return all
}

// answersOnly shows each certificate, whichever CAs etcd asks for, on both ports of etcd, and wants
// all to be refused but the one called accepted.
func (c *cluster) answersOnly(t *testing.T, certs map[string]tls.Certificate, accepted string) {
	t.Helper()
	for name, cert := range certs {
		from := attacker
		if name == accepted {
			from = machine{} // a peer's certificate has its address
		}
		for port, path := range map[int]string{c.Ports.EtcdClient: "/version", c.Ports.EtcdPeer: "/members"} {
			client := &http.Client{Timeout: kthwtest.Soon, Transport: &http.Transport{DisableKeepAlives: true, DialContext: from.dial, TLSClientConfig: &tls.Config{
				InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}}}
			resp, err := client.Get(fmt.Sprintf("https://%s:%d%s", c.Address, port, path))
			if err == nil {
				resp.Body.Close()
			}
			switch refused := err != nil && strings.Contains(err.Error(), "remote error: tls:"); {
			case name == accepted && err != nil:
				t.Errorf("%s on port %d: got %v, want it accepted", name, port, err)
			case name != accepted && !refused:
				t.Errorf("%s on port %d: got %v, want a refusal by etcd's TLS", name, port, err)
			}
		}
	}
}

// approve makes an administrator approve a user's certificate, as in any cluster.
func (c *cluster) approve(t *testing.T, cn string, names ...string) (tls.Certificate, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}, DNSNames: names}, key)
	if err != nil {
		t.Fatal(err)
	}
	client := c.Client(t).CertificatesV1().CertificateSigningRequests()
	csr, err := client.Create(t.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "user-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: certificatesv1.KubeAPIServerClientSignerName,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return tls.Certificate{}, err
	}
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test", Message: "approved by an administrator"})
	if _, err := client.UpdateApproval(t.Context(), csr.Name, csr, metav1.UpdateOptions{}); err != nil {
		return tls.Certificate{}, err
	}
	kthwtest.WaitFor(t, "the certificate of "+cn, kthwtest.Soon, func() error {
		if csr, err = client.Get(t.Context(), csr.Name, metav1.GetOptions{}); err == nil && len(csr.Status.Certificate) == 0 {
			err = errors.New("not signed")
		}
		return err
	})
	block, _ := pem.Decode(csr.Status.Certificate)
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}, nil
}

func (c *cluster) ofKubeconfig(t *testing.T, name string) tls.Certificate {
	t.Helper()
	return certOf(t, c.Kubeconfig(name))
}

func certOf(t *testing.T, kubeconfig string) tls.Certificate {
	t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(cfg.CertData, cfg.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// No certificate with a controller's name is issued, even if an administrator
// approves it.
func TestControllersNameIsNotSigned(t *testing.T) {
	t.Parallel()
	c := use(t)
	if _, err := c.approve(t, "kubernetes"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "belongs to the cluster's controllers") {
		t.Errorf("a certificate for the common name kubernetes: got %v, want it forbidden", err)
	}
	for _, args := range [][]string{{"kubernetes.default", "10.77.0.2"}, {"w1", "kubernetes.default.svc"}, {"w1", "localhost"}} {
		code, out := kthwd(t, append([]string{"pki", "node", "--data-dir=" + c.Dir, "--config=", "--server=https://10.77.0.1:6443", "--output-dir=" + t.TempDir()}, args...)...)
		if code == 0 || !strings.Contains(out, "is a name of the API server") {
			t.Errorf("kthwd pki node %q: got exit code %d:\n%s", args, code, out)
		}
	}
}

// The other controllers would refuse one whose etcd.pem has another name: it
// reports that and changes nothing.
func TestControllerOfAnotherName(t *testing.T) {
	t.Parallel()
	g := growing(t)
	g.join(t)
	second := g.start(t)
	second.WaitReady(t)
	before, err := g.first.Etcd(t).MemberList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second.Cmd.Process.Kill()
	second.Wait(t, kthwtest.Soon)
	writePEM(t, g.first.etcdCA.sign(t, pkix.Name{CommonName: "c1"}, g.address, "127.0.0.1", "localhost"), filepath.Join(g.data, "etcd.pem"), filepath.Join(g.data, "etcd-key.pem"))

	renamed := g.start(t)
	if code := renamed.Wait(t, kthwtest.Soon); code != 1 {
		t.Errorf("a controller with another name: got exit code %d, want 1", code)
	}
	for _, want := range []string{`c0 at ` + g.first.Address, `has a certificate for "kubernetes", and this controller accepts the common name c1`, "peer-cert-allowed-cn"} {
		if !strings.Contains(renamed.Log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, renamed.Log.Tail(5))
		}
	}
	after, err := g.first.Etcd(t).MemberList(t.Context(), clientv3.WithSerializable()) // two members, one down: no quorum
	if err != nil || len(after.Members) != len(before.Members) {
		t.Errorf("members: %v, %v; want those of before, %v", after, err, before)
	}
	if _, err := os.Stat(filepath.Join(g.data, "etcd", "member", "wal")); err != nil {
		t.Errorf("etcd's data: %v", err)
	}
}
