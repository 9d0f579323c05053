package fault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

const caRotationKey = "/kthwd/ca/rotation"

func caRotation(args ...string) []string { return append([]string{"pki", "ca"}, args...) }

// caOf reads a CA of a controller, with its key.
func caOf(t *testing.T, c *kthwtest.Controller, name string) pki.CA {
	t.Helper()
	ca, err := pki.ReadCA(pki.Layout{Dir: c.Dir}, name)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// clusterCAOf reads the cluster's CA of a controller, with its key.
func clusterCAOf(t *testing.T, c *kthwtest.Controller) pki.CA {
	t.Helper()
	return caOf(t, c, pki.NameCA)
}

// startFileReaders asks each controller with its admin.kubeconfig, which is read each time, over a new
// connection.
func startFileReaders(t *testing.T, all ...*kthwtest.Controller) *asking {
	t.Helper()
	var requests []func(context.Context) error
	for _, c := range all {
		requests = append(requests, func(ctx context.Context) error { return readFileOnce(ctx, c) })
	}
	return startAsking(t, requests...)
}

func readFileOnce(ctx context.Context, c *kthwtest.Controller) error {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig("admin"))
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(config.CertData, config.KeyData)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(config.CAData)
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("https://%s:%d/api/v1/namespaces/default", c.Address, c.Ports.Secure), nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// likeKubelet answers as a kubelet's port does: 401 to a certificate that is not of its CAs. Its node
// is ready for the API server's questions. It returns the file of its CAs, which it reads each time.
func likeKubelet(t *testing.T, c *kthwtest.Controller, name string) (caFile string) {
	t.Helper()
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	copyFile(t, pki.Layout{Dir: c.Dir}.CA(), caFile)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		pool, err := pki.Pool(caFile)
		if err == nil && len(r.TLS.PeerCertificates) == 0 {
			err = errors.New("no certificate")
		}
		if err == nil {
			_, err = r.TLS.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
		}
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	server.Config.ErrorLog = log.New(&strings.Builder{}, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	_, portText, _ := net.SplitHostPort(server.Listener.Addr().String())
	port, err := strconv.ParseInt(portText, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	kthwtest.WaitFor(t, "a node", soon, func() error {
		made, err := c.Client(t).CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			made, err = c.Client(t).CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		}
		if err != nil {
			return err
		}
		made.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
		made.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(port)
		_, err = c.Client(t).CoreV1().Nodes().UpdateStatus(t.Context(), made, metav1.UpdateOptions{})
		return err
	})
	return caFile
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	edit(t, to, string(data))
}

// issuerOf is the ID of the CA that has signed a certificate.
func issuerOf(t *testing.T, cert *x509.Certificate, cas ...*x509.Certificate) string {
	t.Helper()
	for _, ca := range cas {
		if cert.CheckSignatureFrom(ca) == nil {
			return pki.CAID(ca)
		}
	}
	return ""
}

func parsed(t *testing.T, certificate []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certificate)
	if block == nil {
		t.Fatal("no certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// shown is the certificate that the API server shows.
func shown(t *testing.T, c *kthwtest.Controller) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", fmt.Sprintf("%s:%d", c.Address, c.Ports.Secure), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// rootCAs are the IDs of the CAs that pods trust.
func rootCAs(t *testing.T, client kubernetes.Interface) (ids []string, err error) {
	t.Helper()
	m, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode([]byte(m.Data["ca.crt"])); block != nil; block, rest = pem.Decode(rest) {
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		ids = append(ids, pki.CAID(ca))
	}
	slices.Sort(ids)
	return ids, nil
}

func wantRootCAs(t *testing.T, client kubernetes.Interface, want ...string) {
	t.Helper()
	slices.Sort(want)
	kthwtest.WaitFor(t, "the CAs of pods", soon, func() error {
		got, err := rootCAs(t, client)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("got %v, want %v", got, want)
		}
		return err
	})
}

// The cluster's CA is replaced under a watch that stays, clients that read their kubeconfig again,
// which never fail, and a user who does not, who is named, works until the old CA is dropped, and is
// refused then.
func TestCARotate(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	client := direct(t, c)
	caFile := likeKubelet(t, c, "w1")
	old := clusterCAOf(t, c).Signs()
	jane := filepath.Join(t.TempDir(), "jane.kubeconfig")
	mustVerb(t, c, []string{"kubeconfig", "create", "jane", "--out=" + jane, fmt.Sprintf("--server=https://%s:%d", c.Address, c.Ports.Secure)})
	takenBack(t, c, old)

	events, err := client.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	r := startFileReaders(t, c)
	mustVerb(t, c, caRotation("rotate"), "ca.pem has both CAs")
	both := clusterCAOf(t, c)
	now := slices.DeleteFunc(both.IDs(), func(id string) bool { return id == old })[0]
	if both.Signs() != old {
		t.Fatal("the new CA signs already")
	}
	wantRootCAs(t, client, old, now)
	mustVerb(t, c, caRotation("status"), "w1", "does not trust the new CA yet", "0 of 1")
	refuses(t, c, caRotation("sign"), "w1 does not trust the new CA", "--force")
	refuses(t, c, caRotation("drop"), "this step comes after the stage watch", "kthwd pki ca sign")
	refuses(t, c, caRotation("rotate"), "a rotation has not ended")
	copyFile(t, pki.Layout{Dir: c.Dir}.CA(), caFile)
	mustVerb(t, c, caRotation("status"), "1 of 1 trust the new CA")
	refuses(t, c, caRotation("sign"), "may not have read the new one before", "--force")

	mustVerb(t, c, caRotation("sign", "--force"), "signs; certificates of "+old[:8]+" are accepted")
	ca, was := both.Certificate(now), both.Certificate(old)
	if got := issuerOf(t, shown(t, c), ca, was); got != now {
		t.Errorf("the API server shows a certificate of %s, want %s", got, now)
	}
	if got := issuerOf(t, parsed(t, signedUser(t, c, "joe").certificate), ca, was); got != now {
		t.Errorf("kube-controller-manager signs with %s, want %s", got, now)
	}
	janes := trusting(t, c, jane)
	kthwtest.WaitFor(t, "the one with a certificate of the old CA to be named", soon, func() error {
		if err := whoAmI(t.Context(), janes); err != nil {
			t.Fatalf("a certificate of the old CA: %v", err)
		}
		if _, out := verb(t, c, caRotation("status")...); !strings.Contains(out, "jane from") {
			return errors.New(out)
		}
		if r := mustStatus(t, c); !findingSays(r, "ca_rotation", "with certificates of the old CA") {
			return fmt.Errorf("got the findings %+v", r.Findings)
		}
		return nil
	})
	refuses(t, c, caRotation("drop"), "certificates of the old CA", "still in use", "--force")
	refuses(t, c, caRotation("abort"), "can no longer be aborted")
	mustVerb(t, c, caRotation("resume"))
	noCAKeyInEtcd(t, c)
	delivers(t, client, events)

	mustVerb(t, c, caRotation("drop", "--force"), "done  ")
	kthwtest.WaitFor(t, "the old CA's user to be refused", soon, func() error {
		if err := whoAmI(t.Context(), trusting(t, c, jane)); !apierrors.IsUnauthorized(err) {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	r.check(t)
	wantRootCAs(t, direct(t, c), now)
	wantPublishedCAs(t, direct(t, c), "client-ca-file", now)
	if is := clusterCAOf(t, c); !slices.Equal(is.IDs(), []string{now}) || is.Signs() != now || is.Next != nil {
		t.Errorf("the files have the CAs %v, and sign with %s", is.IDs(), is.Signs())
	}
	mustVerb(t, c, caRotation("status"), "none; the last one, "+old[:8]+" → "+now[:8])
	mustVerb(t, c, []string{"pki", "show"}, "ca.pem")
	startsWithNewCA(t, c)
}

// takenBack begins a rotation and takes it back, which leaves the files as they were, to the byte.
func takenBack(t *testing.T, c *kthwtest.Controller, old string) {
	t.Helper()
	mustVerb(t, c, caRotation("rotate", "--plan"), "trust ", "distribute ", "sign ", "watch ", "drop ")
	mustVerb(t, c, caRotation("status"), "rotation", "none", "signs with "+old[:8]+", trusts "+old[:8])
	for _, v := range []string{"resume", "sign", "drop", "abort"} {
		refuses(t, c, caRotation(v), "no rotation of the cluster's CA is under way")
	}
	files := contentOf(t, c, "ca.pem", "ca-key.pem", "admin.kubeconfig", "kube-scheduler.kubeconfig", "kubernetes.pem")
	mustVerb(t, c, caRotation("rotate", "--without-backup"), "ca.pem has both CAs")
	mustVerb(t, c, caRotation("abort"), "aborted")
	for name, data := range contentOf(t, c, "ca.pem", "ca-key.pem", "admin.kubeconfig", "kube-scheduler.kubeconfig", "kubernetes.pem") {
		if data != files[name] {
			t.Errorf("taken back, %s is another file than before", name)
		}
	}
}

// startsWithNewCA restarts a controller after a rotation, which must find nothing wrong with its files.
func startsWithNewCA(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, soon)
	c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports})
	if err := whoAmI(t.Context(), direct(t, c)); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	for _, kind := range []string{"ca_rotation", "file_misfit", "file_changed", "certificate", "keys_replaced"} {
		if r := mustStatus(t, c); findingSays(r, kind, "") {
			t.Errorf("after a restart: got the findings %+v", r.Findings)
		}
	}
}

// contentOf reads files of a data directory.
func contentOf(t *testing.T, c *kthwtest.Controller, names ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(c.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(data)
	}
	return all
}

// trusting is a client with the certificate of a kubeconfig that trusts the CAs of the controller's
// ca.pem: a user who has got the new CA, and no new certificate.
func trusting(t *testing.T, c *kthwtest.Controller, path string) kubernetes.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.CAData, config.CAFile = nil, pki.Layout{Dir: c.Dir}.CA()
	config.QPS, config.Burst = -1, -1
	return kubernetes.NewForConfigOrDie(config)
}

// delivers wants a watch from before to deliver what happens now.
func delivers(t *testing.T, client kubernetes.Interface, events watch.Interface) {
	t.Helper()
	name := fmt.Sprintf("now-%d", time.Now().UnixNano())
	if _, err := client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case e, open := <-events.ResultChan():
			if !open {
				t.Fatal("a watch from before the rotation has ended")
			}
			if m, ok := e.Object.(*corev1.ConfigMap); ok && m.Name == name {
				return
			}
		case <-time.After(soon):
			t.Fatal("a watch from before the rotation does not deliver")
		}
	}
}

// noCAKeyInEtcd wants no private key below /kthwd in etcd.
func noCAKeyInEtcd(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	is := clusterCAOf(t, c)
	block, _ := pem.Decode(is.Key)
	if block == nil {
		t.Fatal("no key in the file")
	}
	lines := strings.Split(string(pem.EncodeToMemory(block)), "\n")
	noKeyInState(t, c.Etcd(t), "secret: "+lines[1])
}

// A controller that is killed in any stage starts again, serves its clients, and goes on when it is
// told to.
func TestCAKilled(t *testing.T) {
	endToEnd(t, "TestCARotate")
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	old := clusterCAOf(t, c).Signs()
	for _, tt := range []struct {
		stage, then string
		run         []string
	}{
		{"trust", "abort", []string{"rotate", "--without-backup"}},
		{"trust", "resume", []string{"rotate", "--without-backup"}},
		{"sign", "resume", []string{"sign", "--force"}},
		{"drop", "resume", []string{"drop", "--force"}},
	} {
		killWhen(t, c, caRotationKey, tt.stage, caRotation(tt.run...)...)
		c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports})
		if err := readFileOnce(t.Context(), c); err != nil {
			t.Errorf("after a kill in %s: %v", tt.stage, err)
		}
		// The lease of the process that died may last for some seconds.
		kthwtest.WaitFor(t, tt.then+" after a kill in "+tt.stage, soon, func() error {
			code, out := verb(t, c, caRotation(tt.then)...)
			if code != 0 && !(tt.stage == "drop" && strings.Contains(out, "no rotation of the cluster's CA is under way")) { // it was faster than the kill
				return errors.New(out)
			}
			return nil
		})
		if err := readFileOnce(t.Context(), c); err != nil {
			t.Errorf("after a kill in %s and %s: %v", tt.stage, tt.then, err)
		}
		if is := clusterCAOf(t, c); tt.then == "abort" && !slices.Equal(is.IDs(), []string{old}) {
			t.Errorf("taken back, ca.pem has %v", is.IDs())
		}
	}
	if is := clusterCAOf(t, c); len(is.Trusted) != 1 || is.Signs() == old || is.Next != nil {
		t.Errorf("at the end ca.pem has %v, and %s signs", is.IDs(), is.Signs())
	}
}

// Three controllers: without one of them a rotation does not begin, and the error names it. With all,
// no client fails anywhere, and a controller with files of another time is not admitted.
func TestCAOfThree(t *testing.T) {
	endToEnd(t, "TestCARotate and TestCAKilled replace the CA of one controller")
	kthwtest.Turn(t, 3)
	m := makeCluster(t)
	all := m.startAll(t)
	old := clusterCAOf(t, all[0]).Signs()
	before := contentOf(t, all[2], "ca.pem")

	m.refusesWithoutC2(t, &all, caRotation("rotate", "--without-backup")...)

	r := startFileReaders(t, all[:]...)
	mustVerb(t, all[0], caRotation("rotate", "--without-backup"), "ca.pem has both CAs")
	mustVerb(t, all[1], caRotation("sign", "--force"), "signs; certificates of "+old[:8]+" are accepted")
	both := clusterCAOf(t, all[0])
	for i, c := range all {
		if got := issuerOf(t, shown(t, c), both.Trusted...); got != both.Signs() || got == old {
			t.Errorf("c%d shows a certificate of %s, want %s", i, got, both.Signs())
		}
	}
	mustVerb(t, all[2], caRotation("drop", "--force"), "done  ")
	for i, c := range all { // which have no key of the CA, as kthwd pki init --controllers makes them
		if is := clusterCAOf(t, c); !slices.Equal(is.IDs(), []string{both.Signs()}) || is.Signs() != both.Signs() || is.Next != nil || (is.Key != nil) != (i == 0) {
			t.Errorf("c%d has %v, %s signs, a key %v", i, is.IDs(), is.Signs(), is.Key != nil)
		}
	}
	r.check(t)

	all[2].Signal(t, syscall.SIGTERM)
	all[2].Wait(t, soon)
	for name, data := range before {
		edit(t, filepath.Join(all[2].Dir, name), data)
	}
	earlier := m.start(t, 2)
	if code := earlier.Wait(t, soon); code == 0 || !strings.Contains(earlier.Log.String(), "ca.pem") {
		t.Errorf("with the CA of before: got exit code %d:\n%s", code, earlier.Log.Tail(20))
	}
}
