package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

const (
	// rotationEnv switches a test on that waits for half an hour.
	rotationEnv = "KTHWD_KUBELET_ROTATION"

	// inUse is how many certificates of each kind the kubelet has had after three rotations.
	inUse = 4

	// kubeletPair is where the kubelet has its client certificate.
	kubeletPair = "/var/lib/kubelet/pki/kubelet-client-current.pem"
)

// TestKubeletRotation gives a real kubelet certificates of ten minutes, the least that upstream
// signs, and waits until it has replaced its client certificate and its serving certificate three
// times each. The node is ready all the while, and logs and exec work over the last of them. It has
// joined with a shell script.
func TestKubeletRotation(t *testing.T) {
	if os.Getenv(rotationEnv) == "" {
		t.Skip(rotationEnv + " is not set: run make test-kubelet-rotation, which takes half an hour")
	}
	if !onWorkerMachine(t) {
		return
	}
	c, kubelet := joinWorker(t, byScript, "--kube-controller-manager-arg=cluster-signing-duration=10m")
	pod := deployHello(t, c)
	ready := readySince(t, c)

	pool := certPool(t, pki.Layout{Dir: c.Dir}.CA())
	var client, serving []*x509.Certificate
	kthwtest.WaitFor(t, "three rotations of both certificates", time.Hour, func() error {
		if kubelet.ended() {
			t.Fatal("the kubelet has ended")
		}
		now, err := servingCertificate(t, pool)
		if err != nil {
			if _, refused := errors.AsType[*tls.CertificateVerificationError](err); refused {
				t.Fatalf("the serving certificate: %v", err)
			}
			return err
		}
		serving = withNew(t, "serving", serving, now)
		client = withNew(t, "client", client, clientCertificate(t))
		if len(client) < inUse || len(serving) < inUse {
			return fmt.Errorf("%d client certificates, %d serving ones; want %d of each", len(client), len(serving), inUse)
		}
		return nil
	})
	for kind, all := range map[string][]*x509.Certificate{"client": client, "serving": serving} {
		for i, cert := range all {
			if life := cert.NotAfter.Sub(cert.NotBefore); life > 16*time.Minute { // it begins five minutes before it is signed
				t.Errorf("%s certificate %d is valid for %v, want ten minutes", kind, i, life)
			}
		}
		if end := all[0].NotAfter; time.Now().Before(end) {
			t.Errorf("the first %s certificate has not ended: it does until %v", kind, end)
		}
	}
	issuedToKubelet(t, c)

	wantAllowed(t, c, kubelet, pod)
	wantAll(t, run(t, kthwtest.Binary(t), "kubectl", "-n", namespace, "logs", pod), "hello, serving on 8080")
	wantAll(t, run(t, kthwtest.Binary(t), "kubectl", "-n", namespace, "exec", pod, "--", "/hello", "say", "it works"), "it works")
	if now := readySince(t, c); !now.Equal(ready) {
		t.Errorf("the node is ready since %v, and was at %v: it was not ready meanwhile", now, ready)
	}
	wantDeleted(t, c)
}

// withNew adds a certificate that is another one than the last.
func withNew(t *testing.T, kind string, all []*x509.Certificate, now *x509.Certificate) []*x509.Certificate {
	t.Helper()
	if n := len(all); n > 0 && all[n-1].Equal(now) {
		return all
	}
	if slices.ContainsFunc(all, now.Equal) {
		t.Errorf("an older %s certificate is in use again", kind)
	}
	t.Logf("%s certificate %d, until %s", kind, len(all), now.NotAfter.Format(time.TimeOnly))
	return append(all, now)
}

// servingCertificate is the one that the kubelet shows, verified as the API server does.
func servingCertificate(t *testing.T, pool *x509.CertPool) (*x509.Certificate, error) {
	t.Helper()
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}).DialContext(t.Context(), "tcp", net.JoinHostPort(joinerAddress, "10250"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// clientCertificate is the one with which the kubelet asks.
func clientCertificate(t *testing.T) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(readFile(t, kubeletPair)))
	if block == nil {
		t.Fatalf("%s holds no certificate", kubeletPair)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issuedToKubelet wants the certificates to be those of requests that were approved.
func issuedToKubelet(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	requests, err := c.Client(t).CertificatesV1().CertificateSigningRequests().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	issued := map[string]int{}
	for _, r := range requests.Items {
		if len(r.Status.Certificate) > 0 {
			issued[r.Spec.SignerName]++
		}
	}
	for _, signer := range []string{certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName} {
		if issued[signer] < inUse {
			t.Errorf("%s: %d certificates were issued, want %d", signer, issued[signer], inUse)
		}
	}
}

// readySince is when the node became ready. It waits for that.
func readySince(t *testing.T, c *kthwtest.Controller) (since time.Time) {
	t.Helper()
	kthwtest.WaitFor(t, "a ready node", kthwtest.Soon, func() error {
		node, err := c.Client(t).CoreV1().Nodes().Get(t.Context(), workerName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		at := slices.IndexFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		if at < 0 {
			return fmt.Errorf("conditions: %v", node.Status.Conditions)
		}
		since = node.Status.Conditions[at].LastTransitionTime.Time
		return nil
	})
	return since
}
