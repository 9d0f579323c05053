package attack

import (
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
	"net/http"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/test/kthwtest"
)

// A user asks for system:masters, and is refused; is revoked, and tries every other way in with
// the same key. Somebody who knows the user's name can neither come in nor put the blame on it.
func TestRevokedUser(t *testing.T) {
	t.Parallel()
	c := use(t)
	code, out := kthwd(t, "kubeconfig", "create", "jane", "--out=-", "--data-dir="+c.Dir, "--config=")
	config, err := clientcmd.RESTConfigFromKubeConfig([]byte(out))
	if code != 0 || err != nil {
		t.Fatalf("kthwd kubeconfig create: exit code %d, %v\n%s", code, err, out)
	}
	jane, err := tls.X509KeyPair(config.CertData, config.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	if code, out := kthwd(t, "kubectl", "--data-dir="+c.Dir, "create", "clusterrolebinding", "jane", "--clusterrole=cluster-admin", "--user=jane"); code != 0 {
		t.Fatal(out)
	}
	kthwtest.WaitFor(t, "the rights of jane", kthwtest.Soon, func() error {
		return c.wantCode(t, jane, http.StatusOK, "/api/v1/secrets", nil)
	})
	const requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
	for _, group := range []string{"system:masters", ""} {
		body := userRequest(t, "jane", group)
		code, answer, err := c.ask(t.Context(), jane, http.MethodPost, c.Ports.Secure, requests, body)
		want := map[bool]int{true: http.StatusForbidden, false: http.StatusCreated}[group != ""]
		if err != nil || code != want {
			t.Errorf("a request for the group %q: got %d, %v, %.200s; want %d", group, code, err, answer, want)
		}
	}
	if code, out := kthwd(t, "kubeconfig", "revoke", "jane", "--data-dir="+c.Dir, "--config="); code != 0 {
		t.Fatalf("kthwd kubeconfig revoke: exit code %d\n%s", code, out)
	}
	kthwtest.WaitFor(t, "refusal of jane", kthwtest.Soon, func() error {
		return c.wantCode(t, jane, http.StatusUnauthorized, "/api/v1/secrets", nil)
	})
	var token string
	kthwtest.WaitFor(t, "a token of a service account", kthwtest.Soon, func() error {
		code, out := kthwd(t, "kubectl", "--data-dir="+c.Dir, "create", "token", "default")
		if token = strings.TrimSpace(out); code != 0 {
			return errors.New(out)
		}
		return nil
	})
	chain := jane
	chain.Certificate = append([][]byte{jane.Certificate[0]}, c.ca.cert.Raw)
	for name, try := range map[string]struct {
		cert   tls.Certificate
		header http.Header
	}{
		"with the CA behind it":        {chain, nil},
		"as somebody else":             {jane, http.Header{"Impersonate-User": {"admin"}, "Impersonate-Group": {"system:masters"}}},
		"as a front proxy":             {jane, http.Header{"X-Remote-User": {"admin"}, "X-Remote-Group": {"system:masters"}}},
		"with a good token":            {jane, http.Header{"Authorization": {"Bearer " + token}}},
		"with a certificate of her CA": {ownAuthority(t).sign(t, pkix.Name{CommonName: "jane"}), nil},
	} {
		if err := c.wantCode(t, try.cert, http.StatusUnauthorized, "/api/v1/secrets", try.header); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if code, answer, err := c.ask(t.Context(), jane, http.MethodPost, c.Ports.Secure, requests, userRequest(t, "jane", "")); err != nil || code != http.StatusUnauthorized {
		t.Errorf("another certificate: got %d, %v, %.200s", code, err, answer)
	}
	foreign := ownAuthority(t).sign(t, pkix.Name{CommonName: "jane"})
	if err := c.wantCode(t, foreign, http.StatusForbidden, "/api/v1/secrets", http.Header{"Authorization": {"Bearer " + token}}); err != nil {
		t.Errorf("a token beside a certificate of nobody's: %v", err)
	}
	if n := strings.Count(c.Log.String(), "revoked certificate refused"); n != 1 {
		t.Errorf("the log tells of %d revoked certificates, want that of jane alone", n)
	}
}

// wantCode asks for a path of the API server, with the certificate whether or not the server names
// its CA.
func (c *cluster) wantCode(t *testing.T, cert tls.Certificate, want int, path string, header http.Header) error {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.cert)
	client := &http.Client{Timeout: kthwtest.Soon, Transport: &http.Transport{DisableKeepAlives: true, DialContext: attacker.dial, TLSClientConfig: &tls.Config{RootCAs: pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://%s:%d%s", c.Address, c.Ports.Secure, path), nil)
	if err != nil {
		return err
	}
	for key, values := range header {
		req.Header[key] = values
	}
	answer, err := client.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != want {
		return fmt.Errorf("got %s, want %d", answer.Status, want)
	}
	return nil
}

// userRequest is a CertificateSigningRequest for a user.
func userRequest(t *testing.T, user, group string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	subject := pkix.Name{CommonName: user}
	if group != "" {
		subject.Organization = []string{group}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(certificatesv1.CertificateSigningRequest{
		TypeMeta:   metav1.TypeMeta{APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest"},
		ObjectMeta: metav1.ObjectMeta{GenerateName: "user-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: certificatesv1.KubeAPIServerClientSignerName,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return body
}
