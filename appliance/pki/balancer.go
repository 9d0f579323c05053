package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"time"
)

// The life of a certificate with which a load balancer renews its own.
const (
	BalancerLife        = 30 * 24 * time.Hour // of the first one, unless a person says otherwise
	longestRenewedLife  = 90 * 24 * time.Hour
	shortestRenewedLife = 10 * time.Minute // the shortest that a CertificateSigningRequest can ask for
)

// RenewedLife returns how long the next certificate lasts at most if one of the load balancer's
// certificates lasts from begin to end: no longer than this one. It drops the minutes by which
// signers begin a certificate earlier, so that lives do not grow from one to the next.
func RenewedLife(begin, end time.Time) time.Duration {
	return min(max(end.Sub(begin).Truncate(shortestRenewedLife), shortestRenewedLife), longestRenewedLife)
}

// RenewAt returns when a load balancer's certificate is due for renewal: when a third of its life
// is left.
func RenewAt(cert *x509.Certificate) time.Time {
	return cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / 3)
}

// IsOwnKind reports whether a public key is of the kind that kthwd makes.
func IsOwnKind(public any) bool {
	key, ok := public.(*ecdsa.PublicKey)
	return ok && key.Curve == elliptic.P256()
}

// CredentialOf returns what the API server calls the certificate of a client
// (k8s.io/apiserver/pkg/authentication/request/x509/x509.go).
func CredentialOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return "X509SHA256=" + hex.EncodeToString(sum[:])
}
