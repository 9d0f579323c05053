package users

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	certificatesv1 "k8s.io/api/certificates/v1"

	"kthwd/appliance/pki"
	"kthwd/rbacseed"
)

// backdated is by how much kube-controller-manager begins a certificate before it signs it
// (pkg/controller/certificates/signer/signer.go).
const backdated = 5 * time.Minute

// Renewal is a request of a load balancer for its next certificate.
type Renewal struct {
	User       string   // the client's name
	Groups     []string // the client's
	Credential string   // the certificate with which the client asks, as pki.CredentialOf has it
	Signer     string
	Usages     []string
	Life       time.Duration // that it asks for; 0 for the signer's longest
	Contents   *x509.CertificateRequest
}

// IsBalancer reports whether a client with these groups asks for nothing but its own renewal.
func IsBalancer(groups []string) bool { return slices.Contains(groups, rbacseed.BalancerGroup) }

// MayRenew says why a load balancer does not get the certificate that it asks for; nil if it does.
// It gets one with the same name, the same groups and the same kind of key, and for no longer than
// the one with which it asks, if that one is in the ledger, valid and not revoked.
func MayRenew(ctx context.Context, etcd *clientv3.Client, r Renewal) error {
	if err := r.check(); err != nil {
		return err
	}
	all, err := read[Certificate](ctx, etcd, ledgerPrefix)
	if err != nil {
		return err
	}
	revoked, err := readRevocations(ctx, etcd)
	if err != nil {
		return err
	}
	for _, c := range all {
		if c.Credential == r.Credential {
			return r.checkAgainst(c, revoked, time.Now())
		}
	}
	return fmt.Errorf("the ledger does not have the certificate of %s yet", r.User)
}

// check decides by the request alone.
func (r Renewal) check() error {
	c := r.Contents
	switch {
	case r.Signer != certificatesv1.KubeAPIServerClientSignerName:
		return fmt.Errorf("a load balancer gets certificates of %s, not of %s", certificatesv1.KubeAPIServerClientSignerName, r.Signer)
	case r.Credential == "":
		return fmt.Errorf("%s has not come with a certificate", r.User)
	case c.Subject.CommonName != r.User:
		return fmt.Errorf("%s asks for a certificate of %q", r.User, c.Subject.CommonName)
	case len(c.Subject.Names) != 1+len(c.Subject.Organization):
		return errors.New("its subject has more than a name and groups")
	case len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses)+len(c.URIs) > 0:
		return errors.New("a client certificate has no addresses")
	case !pki.IsOwnKind(c.PublicKey):
		return errors.New("its key is not of the kind ECDSA P-256")
	case !slices.Contains(r.Usages, string(certificatesv1.UsageClientAuth)):
		return fmt.Errorf("the usage %q is missing", certificatesv1.UsageClientAuth)
	case r.Life == 0:
		return errors.New("it does not say how long it is to last: expirationSeconds is missing")
	}
	for _, u := range r.Usages {
		if u != string(certificatesv1.UsageClientAuth) && u != string(certificatesv1.UsageDigitalSignature) {
			return fmt.Errorf("the usage %q is not that of a client certificate", u)
		}
	}
	return nil
}

// checkAgainst compares a request with the certificate with which the client asks.
func (r Renewal) checkAgainst(c Certificate, revoked revocations, now time.Time) error {
	sorted := func(all []string) []string { return slices.Sorted(slices.Values(all)) }
	longest := pki.RenewedLife(c.NotBefore, c.NotAfter)
	_, refused := revoked.of(c.Serial, c.User, c.NotBefore)
	from := revoked.users[c.User].At.Add(backdated)
	switch {
	case c.User != r.User || !IsBalancer(c.Groups):
		return fmt.Errorf("the certificate %s is not that of the load balancer %s", c.Serial, r.User)
	case refused:
		return fmt.Errorf("the certificate %s of %s is revoked", c.Serial, c.User)
	case !now.Before(c.NotAfter):
		return fmt.Errorf("the certificate %s of %s has expired", c.Serial, c.User)
	case !slices.Equal(sorted(r.Contents.Subject.Organization), sorted(c.Groups)):
		return fmt.Errorf("it asks for the groups %q, and has %q", r.Contents.Subject.Organization, c.Groups)
	case r.Life > longest:
		return fmt.Errorf("it asks for %v; the next certificate lasts %v at most", r.Life, longest)
	case now.Before(from):
		return fmt.Errorf("certificates of %s were revoked at %s, and the next one would begin before that: ask after %s", c.User,
			from.Add(-backdated).UTC().Format(time.TimeOnly), from.UTC().Format(time.TimeOnly)+" UTC")
	}
	return nil
}
