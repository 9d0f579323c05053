package adopt

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

// kubeadmFiles are kubeadm's names of files that kthwd has, too.
var kubeadmFiles = map[string]string{
	"ca.pem": "pki/ca.crt", "ca-key.pem": "pki/ca.key", "service-account-key.pem": "pki/sa.key", "front-proxy-ca.pem": "pki/front-proxy-ca.crt", "front-proxy-ca-key.pem": "pki/front-proxy-ca.key",
	"front-proxy-client.pem": "pki/front-proxy-client.crt", "front-proxy-client-key.pem": "pki/front-proxy-client.key",
	"kubernetes.pem": "pki/apiserver-kubelet-client.crt", "kubernetes-key.pem": "pki/apiserver-kubelet-client.key",
	"etcd-ca.pem": "pki/etcd/ca.crt", "etcd-ca-key.pem": "pki/etcd/ca.key", "etcd.pem": "pki/etcd/server.crt", "etcd-key.pem": "pki/etcd/server.key",
	"kube-controller-manager.kubeconfig": "controller-manager.conf", "kube-scheduler.kubeconfig": "scheduler.conf",
}

// serverOnly issues an apiserver.crt as kubeadm does, which is no client's certificate.
func serverOnly(t *testing.T, caCert, caKey string) (cert, key []byte) {
	t.Helper()
	block := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := pem.Decode(data)
		return b.Bytes
	}
	ca, err := x509.ParseCertificate(block(caCert))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := x509.ParsePKCS8PrivateKey(block(caKey))
	if err != nil {
		if signer, err = x509.ParseECPrivateKey(block(caKey)); err != nil {
			t.Fatal(err)
		}
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "kube-apiserver"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"node", "kubernetes", "kubernetes.default.svc"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 96, 0, 1)},
	}, ca, own.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

// newKubeadm makes kubeadm's files and static pods. The paths in the containers are those of
// kubeadm, and those of the machine are below root.
func newKubeadm(t *testing.T) *plant {
	t.Helper()
	p := &plant{root: t.TempDir(), ports: kthwtest.FreePorts(t, "127.0.0.1"), running: map[string]*exec.Cmd{}, logs: map[string]*bytes.Buffer{}}
	p.data, p.etcd = filepath.Join(p.root, "data"), filepath.Join(p.root, "var/lib/etcd")
	made := pki.Layout{Dir: filepath.Join(t.TempDir(), "made")}
	if _, err := pki.Ensure(made, pki.Spec{Local: []string{"127.0.0.1"}, Server: "https://127.0.0.1:" + strconv.Itoa(p.ports.Secure)}); err != nil {
		t.Fatal(err)
	}
	etc := filepath.Join(p.root, "kubernetes")
	put := func(name string, data []byte) {
		path := filepath.Join(etc, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range kubeadmFiles {
		data, err := os.ReadFile(filepath.Join(made.Dir, from))
		if err != nil {
			t.Fatal(err)
		}
		put(to, data)
	}
	for _, name := range []string{"crt", "key"} { // kubeadm has a pair of its own for the API server
		put("pki/apiserver-etcd-client."+name, contents(t, filepath.Join(etc, "pki/etcd/server."+name)))
	}
	admin, err := clientcmd.BuildConfigFromFlags("", made.Kubeconfig(pki.NameSuperAdmin))
	if err != nil {
		t.Fatal(err)
	}
	p.admin = admin
	cert, key := serverOnly(t, made.CA(), made.CAKey())
	put("pki/apiserver.crt", cert)
	put("pki/apiserver.key", key)
	leaf, err := os.ReadFile(made.Cert(pki.NameServiceAccount))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(leaf)
	account, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(account.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	put("pki/sa.pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
	p.pods(t, etc)
	return p
}

// pods writes the static pods.
func (p *plant) pods(t *testing.T, etc string) {
	t.Helper()
	at := func(port int) string { return "https://127.0.0.1:" + strconv.Itoa(port) }
	pki := "/etc/kubernetes/pki/"
	p.words = map[string][]string{
		"etcd": {
			"--advertise-client-urls=" + at(p.ports.EtcdClient), "--cert-file=" + pki + "etcd/server.crt", "--client-cert-auth=true", "--data-dir=/var/lib/etcd",
			"--initial-advertise-peer-urls=" + at(p.ports.EtcdPeer), "--initial-cluster=node=" + at(p.ports.EtcdPeer), "--key-file=" + pki + "etcd/server.key",
			"--listen-client-urls=" + at(p.ports.EtcdClient), "--listen-peer-urls=" + at(p.ports.EtcdPeer), "--name=node", "--peer-cert-file=" + pki + "etcd/server.crt",
			"--peer-client-cert-auth=true", "--peer-key-file=" + pki + "etcd/server.key", "--peer-trusted-ca-file=" + pki + "etcd/ca.crt", "--snapshot-count=10000", "--trusted-ca-file=" + pki + "etcd/ca.crt",
		},
		"kube-apiserver": {
			"--advertise-address=127.0.0.1", "--bind-address=127.0.0.1", "--allow-privileged=true", "--authorization-mode=Node,RBAC", "--client-ca-file=" + pki + "ca.crt", "--enable-admission-plugins=NodeRestriction",
			"--enable-bootstrap-token-auth=true", "--endpoint-reconciler-type=none", // on loopback
			"--etcd-cafile=" + pki + "etcd/ca.crt", "--etcd-certfile=" + pki + "apiserver-etcd-client.crt", "--etcd-keyfile=" + pki + "apiserver-etcd-client.key", "--etcd-servers=" + at(p.ports.EtcdClient), "--kubelet-client-certificate=" + pki + "apiserver-kubelet-client.crt", "--kubelet-client-key=" + pki + "apiserver-kubelet-client.key",
			"--proxy-client-cert-file=" + pki + "front-proxy-client.crt", "--proxy-client-key-file=" + pki + "front-proxy-client.key", "--requestheader-allowed-names=front-proxy-client",
			"--requestheader-client-ca-file=" + pki + "front-proxy-ca.crt", "--secure-port=" + strconv.Itoa(p.ports.Secure), "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + pki + "sa.pub", "--service-account-signing-key-file=" + pki + "sa.key", "--service-cluster-ip-range=10.96.0.0/12",
			"--tls-cert-file=" + pki + "apiserver.crt", "--tls-private-key-file=" + pki + "apiserver.key",
		},
		"kube-controller-manager": {
			"--allocate-node-cidrs=true", "--authentication-kubeconfig=/etc/kubernetes/controller-manager.conf", "--bind-address=127.0.0.1", "--client-ca-file=" + pki + "ca.crt",
			"--secure-port=" + strconv.Itoa(p.ports.ControllerManager), "--cluster-cidr=10.244.0.0/16", "--cluster-signing-cert-file=" + pki + "ca.crt", "--cluster-signing-key-file=" + pki + "ca.key",
			"--controllers=*,bootstrapsigner,tokencleaner", "--kubeconfig=/etc/kubernetes/controller-manager.conf", "--requestheader-client-ca-file=" + pki + "front-proxy-ca.crt",
			"--root-ca-file=" + pki + "ca.crt", "--service-account-private-key-file=" + pki + "sa.key", "--service-cluster-ip-range=10.96.0.0/12", "--use-service-account-credentials=true",
		},
		"kube-scheduler": {"--bind-address=127.0.0.1", "--kubeconfig=/etc/kubernetes/scheduler.conf", "--leader-elect=true", "--secure-port=" + strconv.Itoa(p.ports.Scheduler)},
	}
	dir := filepath.Join(p.root, "etc/kubernetes/manifests")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		pod := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %[1]s, namespace: kube-system}\nspec:\n  containers:\n  - name: %[1]s\n    image: registry.k8s.io/%[1]s:%[2]s\n    command:\n    - %[1]s\n    - %[3]s\n"+
			"    volumeMounts:\n    - {mountPath: /etc/kubernetes, name: k8s}\n    - {mountPath: /var/lib/etcd, name: data}\n  volumes:\n  - {name: k8s, hostPath: {path: %[4]s}}\n  - {name: data, hostPath: {path: %[5]s}}\n",
			name, kubernetesVersion(t), strings.Join(quoted(p.words[name]), "\n    - "), etc, p.etcd)
		if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(pod), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func quoted(words []string) (all []string) {
	for _, w := range words {
		all = append(all, strconv.Quote(w))
	}
	return all
}

// kubeadm's static pods become a kthwd that uses kubeadm's files where they lie, with every object, key and
// token, which units of kthwd eject take over, and another kthwd from them.
func TestKubeadm(t *testing.T) {
	kthwtest.Turn(t, 1)
	ctx := t.Context()
	p := newKubeadm(t)
	inContainer := strings.NewReplacer("/etc/kubernetes", filepath.Join(p.root, "kubernetes"), "/var/lib/etcd", p.etcd)
	onMachine := map[string][]string{}
	if err := os.MkdirAll(filepath.Join(p.root, "usr/local/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		for _, w := range p.words[name] {
			onMachine[name] = append(onMachine[name], inContainer.Replace(w))
		}
		if err := os.Symlink(kthwtest.Binary(t), p.exe(name)); err != nil {
			t.Fatal(err)
		}
	}
	p.words = onMachine
	token := write(ctx, t, p.startAll(ctx, t))
	kthwtest.WaitFor(t, "etcd", kthwtest.Soon, func() error {
		for _, says := range []string{"ready to serve client requests", "cluster version is updated"} { // until then the data have no version
			if !strings.Contains(p.logs["etcd"].String(), says) {
				return errors.New("it has not said " + says)
			}
		}
		return nil
	})
	before := objects(ctx, t, p.admin)
	p.stopAll()
	file := filepath.Join(p.root, "kthwd.yaml")
	out, errs, code := p.adopt(t, "--data-dir="+p.data, "--out="+file)
	if code != 0 || !strings.Contains(out, "mv /etc/kubernetes/manifests/etcd.yaml /etc/kubernetes/") {
		t.Fatalf("got exit code %d\n%s\n%s", code, out, errs)
	}
	t.Log(out)
	c := kthwtest.Start(t, kthwtest.Options{Dir: p.data, File: file, Ports: &p.ports})
	c.Kubectl(t, "get", "namespaces")
	p.compare(ctx, t, before, token)
	for _, name := range []string{"ca.pem", "service-account-key.pem", "etcd-ca.pem"} {
		if _, err := os.Stat(filepath.Join(p.data, name)); err == nil {
			t.Errorf("kthwd made %s, which kubeadm has", name)
		}
	}
	leaf, err := os.ReadFile(filepath.Join(p.data, "kubernetes.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(leaf)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || cert.VerifyHostname("node") != nil || cert.VerifyHostname("10.96.0.1") != nil {
		t.Errorf("kubernetes.pem: %v, names %v, want those of apiserver.crt", err, cert.DNSNames)
	}
	halt(t, p.thereAndBack(ctx, t, c, before, token))
}
