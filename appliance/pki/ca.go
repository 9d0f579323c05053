package pki

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net"
	"time"
)

// newKey returns a new ECDSA P-256 key.
func newKey() (crypto.Signer, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// issue makes the row's certificate for the public key of key. A CA is self-signed;
// ca signs every other certificate.
func issue(r row, names []string, key crypto.Signer, ca pair, now time.Time) (*x509.Certificate, error) {
	template, err := r.template(names, key.Public(), now)
	if err != nil {
		return nil, err
	}
	parent, signer := template, key
	if !r.isCA() {
		parent, signer = ca.chain[0], ca.key
		within(template, parent)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", r.name, err)
	}
	return x509.ParseCertificate(der)
}

func (r row) template(names []string, public crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, err
	}
	life := cmp.Or(r.life, lifetime)
	id, err := keyID(public)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)), // never zero
		Subject:               r.subject(),
		NotBefore:             now.Add(-min(backdate, life/10)).UTC().Truncate(time.Second),
		NotAfter:              now.Add(life).UTC().Truncate(time.Second),
		KeyUsage:              r.keyUsage(public),
		ExtKeyUsage:           r.uses,
		BasicConstraintsValid: true,
		IsCA:                  r.isCA(),
		MaxPathLenZero:        r.isCA(),
		SubjectKeyId:          id,
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	return t, nil
}

func (r row) subject() pkix.Name {
	name := pkix.Name{CommonName: r.cn}
	if r.org != "" {
		name.Organization = []string{r.org}
	}
	return name
}

func (r row) keyUsage(public crypto.PublicKey) x509.KeyUsage {
	if r.isCA() {
		return x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	usage := x509.KeyUsageDigitalSignature
	if _, ok := public.(*rsa.PublicKey); ok && len(r.uses) > 0 {
		usage |= x509.KeyUsageKeyEncipherment // RSA key exchange, in TLS up to 1.2
	}
	return usage
}

// within limits the template's lifetime to its CA's, beyond which the certificate
// would not verify.
func within(t, ca *x509.Certificate) {
	if t.NotAfter.After(ca.NotAfter) {
		t.NotAfter = ca.NotAfter
	}
	if t.NotBefore.Before(ca.NotBefore) {
		t.NotBefore = ca.NotBefore
	}
}

// keyID returns the subject key identifier of RFC 7093, section 2, method 1.
// x509.CreateCertificate makes one for CAs only.
func keyID(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(info.Key.Bytes)
	return sum[:20], nil
}
