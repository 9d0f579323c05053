package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// The files of the guide's second part as they came out of cfssl and kubectl in
// 2019: RSA keys in PKCS #1, names in the guide's order, kubeconfigs with embedded
// certificates, and an EncryptionConfig of apiVersion v1.

// oldNames is the guide's -hostname=.
var oldNames = []string{"10.32.0.1", "10.0.1.48", "10.0.1.239", "10.0.1.200", "127.0.0.1", "kubernetes.default"}

// oldCerts are the certificates, and in what order they were made.
var oldCerts = []struct{ name, cn, org string }{
	{"admin", "admin", "system:masters"},
	{"kube-controller-manager", "system:kube-controller-manager", "system:kube-controller-manager"},
	{"kube-scheduler", "system:kube-scheduler", "system:kube-scheduler"},
	{"kubernetes", "kubernetes", "Kubernetes"},
	{"service-account", "service-accounts", "Kubernetes"},
}

const oldEncryption = `kind: EncryptionConfig
apiVersion: v1
resources:
  - resources:
      - secrets
    providers:
      - aescbc:
          keys:
            - name: key1
              secret: %s
      - identity: {}
`

// makeOldFiles does the guide's second part in home.
func makeOldFiles(t *testing.T, home string) {
	t.Helper()
	ca := newOldPair(t, nil, pkix.Name{CommonName: "Kubernetes", Organization: []string{"Kubernetes"}, OrganizationalUnit: []string{"CA"}}, nil)
	ca.write(t, home, "ca")
	for _, c := range oldCerts {
		var names []string
		if c.name == "kubernetes" {
			names = oldNames
		}
		subject := pkix.Name{CommonName: c.cn, Organization: []string{c.org}, OrganizationalUnit: []string{"Kubernetes The Hard Way"}}
		newOldPair(t, ca, subject, names).write(t, home, c.name)
	}
	for _, user := range []string{"admin", "kube-controller-manager", "kube-scheduler"} {
		makeOldKubeconfig(t, home, user)
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(home, "encryption-config.yaml"), fmt.Sprintf(oldEncryption, base64.StdEncoding.EncodeToString(key)))
}

// makeOldKubeconfig is what the guide types for each user.
func makeOldKubeconfig(t *testing.T, home, user string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(home, name) }
	config := "--kubeconfig=" + in(user+".kubeconfig")
	name := user
	if user != "admin" {
		name = "system:" + user
	}
	kubectl := kthwtest.Kubectl(t)
	run(t, kubectl, "config", "set-cluster", "kubernetes-the-hard-way", "--certificate-authority="+in("ca.pem"), "--embed-certs=true", "--server=https://127.0.0.1:6443", config)
	run(t, kubectl, "config", "set-credentials", name, "--client-certificate="+in(user+".pem"), "--client-key="+in(user+"-key.pem"), "--embed-certs=true", config)
	run(t, kubectl, "config", "set-context", "default", "--cluster=kubernetes-the-hard-way", "--user="+name, config)
	run(t, kubectl, "config", "use-context", "default", config)
}

// oldPair is an RSA certificate and its key.
type oldPair struct {
	cert *x509.Certificate
	key  *rsa.PrivateKey
}

// newOldPair is cfssl gencert, with the guide's profile; without issuer, cfssl gencert -initca.
func newOldPair(t *testing.T, issuer *oldPair, subject pkix.Name, names []string) *oldPair {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	subject.Country, subject.Province, subject.Locality = []string{"US"}, []string{"Oregon"}, []string{"Portland"}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 150))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: subject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(8760 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if issuer == nil {
		template.IsCA, template.KeyUsage, template.ExtKeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
		issuer = &oldPair{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, key.Public(), issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &oldPair{cert, key}
}

// write is cfssljson -bare.
func (p *oldPair) write(t *testing.T, dir, name string) {
	t.Helper()
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	writeFile(t, filepath.Join(dir, name+".pem"), block("CERTIFICATE", p.cert.Raw))
	writeFile(t, filepath.Join(dir, name+"-key.pem"), block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(p.key)))
}
