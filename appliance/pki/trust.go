package pki

import (
	"crypto"
	"crypto/x509"
	"slices"
	"time"
)

// signerFirst puts the certificate of a CA first that signs. Trust is a bundle: during a
// rotation ca.pem holds several CAs, in any order, and only one belongs to the key. Of
// several that do, the one that is valid now and expires last signs. Without a key it is
// the first that could sign now.
func (p *pair) signerFirst(now time.Time) {
	if len(p.chain) < 2 {
		return
	}
	rank := func(c *x509.Certificate) int {
		switch {
		case !mayIssue(c):
			return 0
		case p.key != nil && !fits(p.key, c.PublicKey):
			return 1
		case !current(c, now):
			return 2
		}
		return 3
	}
	slices.SortStableFunc(p.chain, func(a, b *x509.Certificate) int {
		if ra, rb := rank(a), rank(b); ra != rb {
			return rb - ra
		}
		if p.key == nil || rank(a) < 2 {
			return 0
		}
		return b.NotAfter.Compare(a.NotAfter)
	})
	p.public = nil
	for _, c := range p.chain {
		p.public = append(p.public, crypto.PublicKey(c.PublicKey))
	}
}

// mayIssue reports whether a certificate is that of a CA.
func mayIssue(c *x509.Certificate) bool {
	return c.BasicConstraintsValid && c.IsCA && (c.KeyUsage == 0 || c.KeyUsage&x509.KeyUsageCertSign != 0)
}

// checkBundle warns of what a bundle of CAs holds besides the signer: all others are
// trusted, too, for as long as they are in it.
func (v *survey) checkBundle(file string, chain []*x509.Certificate) {
	for i, c := range chain[1:] {
		switch {
		case slices.ContainsFunc(chain[:i+1], c.Equal):
			v.warn("%s: holds the certificate %q twice", file, c.Subject)
		case !mayIssue(c):
			v.warn("%s: holds %q, which is not the certificate of a CA: nothing is verified with it", file, c.Subject)
		case !current(c, v.now):
			v.warn("%s: holds the CA %q, which was valid from %s to %s: nothing is verified with it", file, c.Subject, day(c.NotBefore), day(c.NotAfter))
		}
	}
}

// trusts reports whether the CAs in a kubeconfig are those of the cluster. The program that
// uses it must also be able to verify this machine's API server.
func (v *survey) trusts(k config, cas, cluster []*x509.Certificate) bool {
	if !slices.ContainsFunc(cas, func(c *x509.Certificate) bool { return slices.ContainsFunc(cluster, c.Equal) }) {
		return false
	}
	server := v.pairs[NameKubernetes].chain
	return !k.local || server == nil || !signed(server, cluster) || signed(server, cas)
}
