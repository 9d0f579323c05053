package discovery_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
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

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/lb"
	"kthwd/test/kthwtest"
)

// verb runs kthwd kubeconfig on the controller.
func verb(t *testing.T, c *kthwtest.Controller, args ...string) string {
	t.Helper()
	cmd := exec.Command(kthwtest.Binary(t), append(append([]string{"kubeconfig"}, args...), "--config=", "--data-dir="+c.Dir)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kthwd kubeconfig %q: %v: %s", args, err, out)
	}
	return string(out)
}

// balancerFile makes the kubeconfig of a load balancer, and returns its path.
func balancerFile(t *testing.T, c *kthwtest.Controller, user, expires string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), user+".kubeconfig")
	verb(t, c, "create", user, "--load-balancer", "--expires="+expires, "--out="+path)
	return path
}

func discovering(t *testing.T, c *kthwtest.Controller, file string) *balancer {
	ports := kthwtest.FreePorts(t, c.Address)
	return &balancer{t: t, metrics: net.JoinHostPort(c.Address, strconv.Itoa(ports.Metrics)), args: []string{
		"--listen=" + net.JoinHostPort(c.Address, strconv.Itoa(ports.Secure)), "--backend-ca=" + filepath.Join(c.Dir, "ca.pem"),
		"--discovery-kubeconfig=" + file, "--discovery-cache=" + filepath.Join(t.TempDir(), "backends.json"), "--drain-timeout=1s",
		"--backend=" + net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.Secure)),
	}}
}

func certificateOf(r status.Report) (lb.CertificateStatus, error) {
	if r.LB.Discovery == nil || r.LB.Discovery.Certificate == nil {
		return lb.CertificateStatus{}, errors.New("status has no certificate")
	}
	return *r.LB.Discovery.Certificate, nil
}

// A load balancer renews the certificate of its discovery while its clients and its own watch go
// on; a revoked one is not renewed, and once it has expired, status says how to make another.
func TestCertificateIsRenewed(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a controller")
	}
	c := kthwtest.Start(t, kthwtest.Options{Address: ownAddress(t)})
	apiServer := net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.Secure))
	thief := balancerFile(t, c, "lb-thief", "1h")
	good, revoked := balancerFile(t, c, "lb-good", "1m"), balancerFile(t, c, "lb-revoked", "1m")
	b, bad := discovering(t, c, good), discovering(t, c, revoked)
	before, err := pki.CertificateIn(good)
	if err != nil {
		t.Fatal(err)
	}
	b.start()
	bad.start()
	b.wait("the backends are followed", func(r status.Report) error {
		if _, err := certificateOf(r); err != nil {
			return err
		}
		return listed(r, apiServer)
	})
	bad.wait("the backends are followed", func(r status.Report) error { return listed(r, apiServer) })
	verb(t, c, "revoke", "lb-revoked")
	was, err := os.ReadFile(revoked)
	if err != nil {
		t.Fatal(err)
	}

	config := c.RESTConfig(t)
	config.Host = "https://" + strings.TrimPrefix(b.args[0], "--listen=")
	through, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	clients, err := through.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=late"})
	if err != nil {
		t.Fatal(err)
	}
	defer clients.Stop()

	t.Run("attacks", func(t *testing.T) { attacks(t, c, thief) })

	b.wait("the certificate is renewed", func(r status.Report) error {
		got, err := certificateOf(r)
		if err == nil && (got.Renewed != 1 || !got.Ends.After(before.NotAfter) || got.Error != "") {
			err = fmt.Errorf("got %+v", got)
		}
		return err
	})
	after, err := pki.CertificateIn(good)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(good); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: got %v, %v", info, err)
	}
	if after.Subject.String() != before.Subject.String() || slices.Equal(after.RawSubjectPublicKeyInfo, before.RawSubjectPublicKeyInfo) {
		t.Errorf("got %s, want %s with another key", after.Subject, before.Subject)
	}
	if out := verb(t, c, "list"); strings.Count("\n"+out, "\nlb-good ") != 2 || !strings.Contains(out, certificatesv1.KubeAPIServerClientSignerName) {
		t.Errorf("the ledger: got\n%s", out)
	}
	if got := b.metric("kthwd_lb_discovery_certificate_renewals_total"); got != "1" {
		t.Errorf("renewals: got %s", got)
	}
	if got := b.metric(`kthwd_lb_discovery_errors_total{reason="api"}`); got != "0" {
		t.Errorf("failed lists and watches: got %s", got)
	}
	const second = "198.51.100.1:6443"
	addSlice(t, c, second)
	b.wait("the watch goes on", func(r status.Report) error { return listed(r, apiServer, second) })
	if _, err := c.Client(t).CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case e, more := <-clients.ResultChan():
		if !more || e.Type != "ADDED" {
			t.Errorf("a client's watch: got %v, open %v", e.Type, more)
		}
	case <-time.After(kthwtest.Soon):
		t.Error("a client's watch sees nothing")
	}

	bad.wait("the revoked certificate is not renewed", func(r status.Report) error {
		got, err := certificateOf(r)
		if err == nil && (got.Error == "" || got.Renewed > 0) {
			err = fmt.Errorf("got %+v", got)
		}
		return err
	})
	bad.wait("it has expired", func(r status.Report) error {
		for _, f := range r.Findings {
			if f.Kind == "discovery_certificate" && strings.Contains(f.Text, "expired on") && strings.Contains(f.Do, "kthwd kubeconfig create lb-revoked --load-balancer") {
				return nil
			}
		}
		return fmt.Errorf("findings: %+v", r.Findings)
	})
	if now, err := os.ReadFile(revoked); err != nil || !bytes.Equal(now, was) {
		t.Errorf("the file of the revoked certificate has changed: %v", err)
	}
	verb(t, c, "create", "lb-revoked", "--load-balancer", "--expires=1h", "--replace", "--out="+revoked)
	bad.wait("a new one is used", func(r status.Report) error {
		got, err := certificateOf(r)
		if err == nil && (got.Error != "" || r.LB.Discovery.Error != "" || r.LB.Discovery.Server == "") {
			err = fmt.Errorf("got %+v, %+v", got, r.LB.Discovery)
		}
		return err
	})
	b.stop()
	bad.stop()
}

// attacks asks with a load balancer's certificate for others.
func attacks(t *testing.T, c *kthwtest.Controller, thief string) {
	config, err := clientcmd.BuildConfigFromFlags("", thief)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	hour := int32(3600)
	type request struct {
		spec     certificatesv1.CertificateSigningRequestSpec
		contents x509.CertificateRequest
		key      crypto.Signer
	}
	for _, tt := range []struct {
		name   string
		change func(*request)
		want   string // in the error; "" for a certificate
	}{
		{"its own", func(*request) {}, ""},
		{"another name", func(r *request) { r.contents.Subject.CommonName = "admin" }, `asks for a certificate of "admin"`},
		{"another load balancer's", func(r *request) { r.contents.Subject.CommonName = "lb-good" }, `asks for a certificate of "lb-good"`},
		{"another group", func(r *request) { r.contents.Subject.Organization = []string{"developers"} }, "asks for the groups"},
		{"one group more", func(r *request) {
			r.contents.Subject.Organization = append(r.contents.Subject.Organization, "developers")
		}, "asks for the groups"},
		{"no group", func(r *request) { r.contents.Subject.Organization = nil }, "asks for the groups"},
		{"more in its subject", func(r *request) { r.contents.Subject.OrganizationalUnit = []string{"x"} }, "more than a name"},
		{"a longer life", func(r *request) { more := hour + 1; r.spec.ExpirationSeconds = &more }, "lasts 1h0m0s at most"},
		{"the signer's life", func(r *request) { r.spec.ExpirationSeconds = nil }, "expirationSeconds is missing"},
		{"an address", func(r *request) { r.contents.DNSNames = []string{"kubernetes"} }, "no addresses"},
		{"another key", func(r *request) { r.key = short }, "ECDSA"},
		{"a server's usage", func(r *request) { r.spec.Usages = append(r.spec.Usages, certificatesv1.UsageServerAuth) }, "usage"},
		{"another signer", func(r *request) {
			r.spec.SignerName, r.spec.Usages = certificatesv1.KubeletServingSignerName, []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
		}, "gets certificates of"},
		{"a signer of somebody's own", func(r *request) { r.spec.SignerName = "example.com/own" }, "gets certificates of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := request{key: own, contents: x509.CertificateRequest{Subject: pkix.Name{CommonName: "lb-thief", Organization: []string{"kthwd:load-balancers"}}},
				spec: certificatesv1.CertificateSigningRequestSpec{SignerName: certificatesv1.KubeAPIServerClientSignerName, ExpirationSeconds: &hour,
					Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}}}
			tt.change(&r)
			der, err := x509.CreateCertificateRequest(rand.Reader, &r.contents, r.key)
			if err != nil {
				t.Fatal(err)
			}
			r.spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
			made, err := client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{GenerateName: "x-"}, Spec: r.spec}, metav1.CreateOptions{})
			if tt.want != "" {
				if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			kthwtest.WaitFor(t, "the certificate", kthwtest.Soon, func() error {
				got, err := client.CertificatesV1().CertificateSigningRequests().Get(t.Context(), made.Name, metav1.GetOptions{})
				if err == nil && len(got.Status.Certificate) == 0 {
					err = fmt.Errorf("got %+v", got.Status)
				}
				return err
			})
		})
	}
	for what, err := range map[string]error{
		"read a secret":        client.CoreV1().RESTClient().Get().AbsPath("/api/v1/namespaces/kube-system/secrets").Do(t.Context()).Error(),
		"read other endpoints": client.DiscoveryV1().RESTClient().Get().AbsPath("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices").Do(t.Context()).Error(),
		"list the requests":    client.CertificatesV1().RESTClient().Get().AbsPath("/apis/certificates.k8s.io/v1/certificatesigningrequests").Do(t.Context()).Error(),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	verb(t, c, "revoke", "lb-thief")
	kthwtest.WaitFor(t, "the thief is refused", kthwtest.Soon, func() error {
		_, err := client.CertificatesV1().CertificateSigningRequests().Create(t.Context(), &certificatesv1.CertificateSigningRequest{}, metav1.CreateOptions{})
		if !apierrors.IsUnauthorized(err) {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
}
