package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// checkCA checks a CA by itself and decides whether Ensure makes it.
func (v *survey) checkCA(r row) {
	l, p := r.in(v.layout), v.pairs[r.name]
	cert, key := l.Cert(r.name), l.Key(r.name)
	leaves := v.signedBy(r.name)
	switch {
	case r.given && !p.hasCert:
		v.misfit(&Misfit{File: cert, Problem: "missing", Hint: "make or copy the CA first"})
		return
	case p.staged != nil:
		v.want(cert)
	case !p.hasCert && p.hasKey:
		v.misfit(&Misfit{File: key, Problem: "exists without its certificate", Other: cert,
			Hint: "copy " + filepath.Base(cert) + " from the origin of the key; kthwd makes no second CA for a key that may already have signed"})
	case !p.hasCert && len(leaves) > 0:
		v.misfit(&Misfit{File: cert, Problem: "missing, although these files are signed by a CA:", Other: strings.Join(leaves, ", "),
			Hint: "copy " + filepath.Base(cert) + " from the origin of these files, or move them all away and kthwd makes a new CA"})
	case !p.hasCert:
		v.want(key)
		v.want(cert)
	}
	if p.chain == nil {
		return
	}
	ca := p.chain[0]
	if !mayIssue(ca) {
		v.misfit(&Misfit{File: cert, Problem: fmt.Sprintf("not the certificate of a CA (it is %q)", ca.Subject), Hint: "another certificate may have been copied under this name"})
	}
	v.checkKey(cert, key, r, p)
	v.checkDates(cert, "", ca, false)
	v.checkBundle(cert, p.chain)
}

// signedBy lists the files that exist only if the CA has existed.
func (v *survey) signedBy(ca string) []string {
	var files []string
	for _, r := range v.rows {
		if p := v.pairs[r.name]; r.issuer == ca && p.hasCert && (len(p.chain) > 0 || len(p.public) == 0) {
			files = append(files, r.in(v.layout).Cert(r.name))
		}
	}
	for _, k := range v.configs {
		if _, err := os.Lstat(k.path(v.layout)); err == nil && v.row(k.cert).issuer == ca {
			files = append(files, k.path(v.layout))
		}
	}
	return files
}

// checkLeaf checks a certificate, or decides that Ensure makes it.
func (v *survey) checkLeaf(r row) {
	l, p := r.in(v.layout), v.pairs[r.name]
	cert, key := l.Cert(r.name), l.Key(r.name)
	wanted := v.wanted(r)
	switch {
	case wanted && p.hasCert && !p.hasKey:
		v.misfit(&Misfit{File: cert, Problem: "exists without its key", Other: key,
			Hint: "copy the key from the origin of the certificate, or move the certificate away and kthwd issues a new pair"})
	case wanted && !p.hasCert && !p.hasKey:
		v.want(key)
		v.want(cert)
	case wanted && !p.hasCert:
		v.want(cert)
	}
	if v.absent[cert] && r.names != nil {
		v.keepNames(r)
	}
	v.checkAlgorithm(r, key, p)
	v.checkKey(cert, key, r, p)
	if p.chain == nil {
		return
	}
	v.checkSignature(cert, "", r, p)
	v.checkLeafDates(cert, "", p.chain[0], r.publicOnly || !wanted, func() (leafFile, bool) { return v.readLeaf(r) })
	v.checkUses(cert, "", r, p.chain[0])
	v.checkIdentity(cert, "", r, p.chain[0])
	v.checkNames(cert, r, p.chain[0])
}

// wanted reports whether the pair must exist: always, unless it serves only to make
// kubeconfigs and all of these exist.
func (v *survey) wanted(r row) bool {
	return !r.configOnly || slices.ContainsFunc(v.configs, func(k config) bool {
		return k.cert == r.name && v.absent[k.path(v.layout)]
	})
}

func (v *survey) checkAlgorithm(r row, file string, p pair) {
	if !r.publicOnly || p.key == nil {
		return
	}
	switch p.key.(type) {
	case *rsa.PrivateKey, *ecdsa.PrivateKey:
	default:
		v.misfit(&Misfit{File: file, Problem: "Kubernetes signs tokens with RSA and ECDSA keys only; this key is " + keyType(p.key.Public())})
	}
}

// checkKey compares key and certificate. The service account's key may match any of
// several public keys: the others verify tokens signed before a rotation.
func (v *survey) checkKey(cert, key string, r row, p pair) {
	if p.key == nil || len(p.public) == 0 {
		return
	}
	public := p.public[:1]
	if r.publicOnly {
		public = p.public
	}
	if !slices.ContainsFunc(public, func(k crypto.PublicKey) bool { return fits(p.key, k) }) {
		v.misfit(&Misfit{File: key, Problem: "not the key of", Other: cert,
			Hint: "the two come from different runs: copy the pair that belongs together"})
	}
}

func (v *survey) checkSignature(file, what string, r row, p pair) {
	ca, issuer := v.pairs[r.issuer], v.row(r.issuer).in(v.layout).Cert(r.issuer)
	if ca.chain == nil {
		return
	}
	if !signed(p.chain, ca.chain) {
		v.misfit(&Misfit{File: file, Problem: what + "not signed by", Other: issuer,
			Hint: "the two come from different runs: copy the files that belong together, or move " + filepath.Base(file) +
				" and its key away and kthwd makes new ones"})
		return
	}
	if !current(p.chain[0], v.now) || len(ca.chain) == 1 && !current(ca.chain[0], v.now) {
		return // checkDates reports it
	}
	if err := verify(p.chain, ca.chain, v.now); err != nil {
		v.misfit(&Misfit{File: file, Problem: fmt.Sprintf("%srefused by crypto/x509 (%v) as a certificate of", what, err), Other: issuer})
	}
}

// signed reports whether the chain leads to one of the CAs, whatever the dates.
func signed(chain, cas []*x509.Certificate) bool {
	by := func(c, parent *x509.Certificate) bool {
		return bytes.Equal(c.RawIssuer, parent.RawSubject) && c.CheckSignatureFrom(parent) == nil
	}
	for i, c := range chain {
		if slices.ContainsFunc(cas, func(ca *x509.Certificate) bool { return by(c, ca) }) {
			return true
		}
		if i+1 == len(chain) || !by(c, chain[i+1]) {
			break
		}
	}
	return false
}

// verify verifies the chain with the library that verifies every handshake.
func verify(chain, cas []*x509.Certificate, now time.Time) error {
	o := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, c := range cas {
		o.Roots.AddCert(c)
	}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(o)
	return err
}

func current(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && !now.After(c.NotAfter)
}

// checkDates refuses a certificate outside its dates; if it is idle, that is, nothing
// uses its dates, it only warns.
func (v *survey) checkDates(file, what string, c *x509.Certificate, idle bool) {
	m := &Misfit{File: file}
	switch left := c.NotAfter.Sub(v.now); {
	case v.now.Before(c.NotBefore):
		m.Problem = fmt.Sprintf("%sis valid only from %s on, and it is now %s", what, day(c.NotBefore), day(v.now))
		m.Hint = "check this machine's clock"
	case left < 0:
		m.Problem = fmt.Sprintf("%sexpired on %s, and it is now %s", what, day(c.NotAfter), day(v.now))
		m.Hint = "renew it, or move it (and its key, if that is a file) away and kthwd makes new ones"
		if c.IsCA {
			m.Hint = hintExpiredCA
		}
	case left < expiresSoon:
		v.warn("%s: %sexpires on %s, in %d days", file, what, day(c.NotAfter), int(left.Hours()/24))
	}
	switch {
	case m.Problem == "":
	case idle:
		v.warn("%v; nothing that runs uses its dates", m)
	default:
		v.misfit(m)
	}
}

// hintExpiredCA keeps all keys: another CA would refuse every client, and another encryption key would
// lose the secrets.
const hintExpiredCA = "check this machine's clock; if it is right, issue the certificate again for the same key (openssl x509 -in CA.pem -signkey CA-key.pem -days 3653 -out NEW.pem), " +
	"put it in place on every controller, and move the kubeconfigs away that hold the old one: what the CA has signed is valid again, and a start makes them anew"

// checkLeafDates is checkDates for a leaf, but has an expired one renewed if the Spec wants
// that and this directory can.
func (v *survey) checkLeafDates(file, what string, c *x509.Certificate, idle bool, read func() (leafFile, bool)) {
	if idle || !v.spec.RenewExpired || !c.NotAfter.Before(v.now) {
		v.checkDates(file, what, c, idle)
		return
	}
	f, ok := read()
	if !ok || !f.row.renewed || f.row.dir != "" {
		v.checkDates(file, what, c, idle)
		return
	}
	if reason, hint := v.cannot(f); reason != "" {
		v.misfit(&Misfit{File: file, Problem: fmt.Sprintf("%sexpired on %s, and it is now %s; it cannot be renewed, because %s", what, day(c.NotAfter), day(v.now), reason), Hint: hint})
		return
	}
	v.expired = append(v.expired, f)
	v.warn("%s: %sexpired on %s, and is renewed", file, what, day(c.NotAfter))
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

func (v *survey) checkUses(file, what string, r row, c *x509.Certificate) {
	for _, use := range r.uses {
		if !allows(c, use) {
			v.misfit(&Misfit{File: file, Problem: fmt.Sprintf("%snot issued for %s use (only for: %s)", what, useName(use), strings.Join(uses(c), ", ")),
				Hint: "reissue it with extended key usage " + useName(use) + "Auth"})
		}
	}
}

func allows(c *x509.Certificate, use x509.ExtKeyUsage) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 ||
		slices.Contains(c.ExtKeyUsage, use) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

func (v *survey) checkIdentity(file, what string, r row, c *x509.Certificate) {
	name := c.Subject
	switch {
	case r.identity == free:
	case r.identity == expected && name.CommonName != r.cn:
		v.warn("%s: its common name is %q; kubelets grant access to the user %q", file, name.CommonName, r.cn)
	case r.identity == required && (name.CommonName != r.cn || r.org != "" && !slices.Contains(name.Organization, r.org)):
		v.misfit(&Misfit{File: file, Problem: fmt.Sprintf("%sis for %q, want %q", what, name, r.subject()),
			Hint: "another certificate may have been copied under this name"})
	}
}

const notValidFor = "not valid for "

func (v *survey) checkNames(file string, r row, c *x509.Certificate) {
	if r.must == nil {
		return
	}
	if lack := lacking(c, r.must(v.spec)); len(lack) > 0 {
		served := "where it will be served"
		if slices.ContainsFunc(lack, func(name string) bool { return slices.Contains(c.DNSNames, name) }) {
			served += ": a client takes an address from the IP addresses in it, not from the DNS names"
		}
		v.misfit(&Misfit{File: file, Problem: fmt.Sprintf(notValidFor+"%s, %s (it is for %s)",
			strings.Join(lack, ", "), served, strings.Join(sans(c), ", ")),
			Hint: "reissue it with this address, or move it and its key away and kthwd makes new ones"})
	}
	if r.name != NameKubernetes {
		return
	}
	addresses, inCluster := wishedNames(v.spec)
	addresses = slices.DeleteFunc(addresses, func(a string) bool { return slices.Contains(v.spec.Local, a) })
	if lack := lacking(c, addresses); len(lack) > 0 {
		v.warn("%s: not valid for %s: clients that connect there cannot verify it", file, strings.Join(lack, ", "))
	}
	if lack := lacking(c, inCluster); len(lack) > 0 {
		v.warn("%s: not valid for %s: clients in pods that use this name cannot verify it", file, strings.Join(lack, ", "))
	}
}

func lacking(c *x509.Certificate, names []string) []string {
	var lack []string
	for _, name := range names {
		// As a TLS client: an address counts only as an IP SAN. No client asks for a wildcard
		// itself, so that one is compared.
		verbatim := strings.HasPrefix(name, "*.") && slices.ContainsFunc(c.DNSNames, func(n string) bool { return strings.EqualFold(n, name) })
		if !verbatim && c.VerifyHostname(name) != nil {
			lack = append(lack, name)
		}
	}
	return lack
}

// checkSigner requires the CA's key if there are certificates to sign, which are
// known by then.
func (v *survey) checkSigner(r row) {
	l, p := r.in(v.layout), v.pairs[r.name]
	if !p.hasCert || p.hasKey {
		return
	}
	var unsigned []string
	for _, leaf := range v.rows {
		if path := leaf.in(v.layout).Cert(leaf.name); leaf.issuer == r.name && v.absent[path] {
			unsigned = append(unsigned, path)
		}
	}
	switch {
	case len(unsigned) > 0:
		v.misfit(&Misfit{File: l.Key(r.name), Problem: "missing, but needed to issue", Other: strings.Join(unsigned, ", "),
			Hint: fmt.Sprintf("copy %s from where %s was made, at least for the first start, or issue these there and copy them with their keys",
				filepath.Base(l.Key(r.name)), filepath.Base(l.Cert(r.name)))})
	case r.name == NameCA && !r.given:
		v.warn("%s: missing, so kube-controller-manager cannot sign certificates for kubelets and others", l.Key(r.name))
	}
}

// checkConfig checks a kubeconfig, because programs use it, not the pair beside it.
func (v *survey) checkConfig(k config) {
	path, a, r := k.path(v.layout), v.access[k.name], v.row(k.cert)
	if v.absent[path] {
		v.report.Missing = append(v.report.Missing, path)
	}
	if a == nil {
		return
	}
	const what = "its client certificate is "
	ca := v.pairs[r.issuer]
	if ca.chain != nil && !v.trusts(k, a.cas, ca.chain) {
		v.misfit(&Misfit{File: path, Problem: "the certificate authority in it is not", Other: v.row(r.issuer).in(v.layout).Cert(r.issuer),
			Hint: "the two come from different runs: copy the files that belong together"})
	}
	if !fits(a.client.key, a.client.public[0]) {
		v.misfit(&Misfit{File: path, Problem: "its client key is not the key of its client certificate"})
	}
	v.checkSignature(path, what, r, a.client)
	v.checkLeafDates(path, "its client certificate ", a.client.chain[0], !k.local, func() (leafFile, bool) { return v.readLeafConfig(k) })
	v.checkUses(path, what, r, a.client.chain[0])
	v.checkIdentity(path, "its client certificate ", r, a.client.chain[0])
	if k.local && checkServer(v.spec.Server) == nil {
		if problem := strayed(a.server, v.spec.Server); problem != "" {
			v.misfit(&Misfit{File: path, Problem: problem, Hint: "correct the server in it, or the port on which kthwd serves"})
		} else if name, chain := a.localName(), v.pairs[NameKubernetes].chain; name != "" && chain != nil && !slices.Contains(v.spec.Local, name) && lacking(chain[0], []string{name}) != nil {
			v.misfit(&Misfit{File: path, Problem: fmt.Sprintf("its server is called %s, for which this certificate is not valid:", name), Other: v.layout.Cert(NameKubernetes),
				Hint: "write https://127.0.0.1 or another name of the certificate as its server"})
		}
	}
}

func (v *survey) checkDocument(d document) {
	path, refuse := d.path(v.layout), forAll
	if d.mode == modeSecret {
		refuse = forTheGroup
	}
	data, there := v.read(path, refuse)
	if !there {
		v.want(path)
	}
	if data != nil {
		v.garbage(path, checkDocument(data))
	}
}

func (v *survey) config(name string) config {
	return v.configs[slices.IndexFunc(v.configs, func(k config) bool { return k.name == name })]
}

func (v *survey) row(name string) row {
	return v.rows[slices.IndexFunc(v.rows, func(r row) bool { return r.name == name })]
}
