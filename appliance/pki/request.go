package pki

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A Request is a request (PKCS #10) for a new certificate in the place of one.
type Request struct {
	File string // its name, such as kubernetes.csr
	PEM  []byte
	For  []string // the files that the certificate is for
}

// Requests makes a request for each of the names, for the key, the names and the uses of the
// certificate in the directory. No key leaves the directory, and none is needed but those
// of the certificates. Import takes the answers.
func Requests(l Layout, names []string) ([]Request, error) {
	if err := checkRenewalNames(names); err != nil {
		return nil, err
	}
	held, err := lock(l.Dir, syscall.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	files := newSurvey(l, Spec{}).leafFiles()
	errs := missingNames(names, files)
	var all []Request
	for _, f := range files {
		if !slices.Contains(names, f.name) {
			continue
		}
		if f.problem != "" {
			errs = append(errs, f.refused(f.problem, f.hint))
			continue
		}
		if i := slices.IndexFunc(all, func(r Request) bool { return r.asksFor(f) }); i >= 0 {
			all[i].For = append(all[i].For, f.path)
			continue
		}
		r, err := f.request()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.path, err))
			continue
		}
		if slices.ContainsFunc(all, func(o Request) bool { return o.File == r.File }) { // of another key
			r.File = filepath.Base(f.path) + ".csr"
		}
		all = append(all, r)
	}
	return all, errors.Join(errs...)
}

// asksFor reports whether the answer would fit the file, too.
func (r Request) asksFor(f leafFile) bool {
	block, _ := pem.Decode(r.PEM)
	in, err := x509.ParseCertificateRequest(block.Bytes)
	return err == nil && fits(f.pair.key, in.PublicKey) && string(in.RawSubject) == string(f.pair.chain[0].RawSubject)
}

var (
	oidKeyUsage    = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidExtKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 37}
)

func (f leafFile) request() (Request, error) {
	like := f.pair.chain[0]
	in := &x509.CertificateRequest{
		RawSubject: like.RawSubject, DNSNames: like.DNSNames, IPAddresses: like.IPAddresses,
		EmailAddresses: like.EmailAddresses, URIs: like.URIs,
		ExtraExtensions: slices.DeleteFunc(slices.Clone(like.Extensions), func(e pkix.Extension) bool {
			return !e.Id.Equal(oidKeyUsage) && !e.Id.Equal(oidExtKeyUsage)
		}),
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, in, f.pair.key)
	return Request{
		File: f.name + ".csr", For: []string{f.path},
		PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
	}, err
}

// Import puts certificates that were signed elsewhere in the place of those whose key they
// fit: kubernetes.pem, or the kubeconfigs and the pair beside them. files are PEM files of
// one certificate each, followed by those between it and the CA. A certificate must have
// the subject, the uses and all names of the one before it, be valid now, lead to a CA
// that the clients here trust, and not end after that. If one is refused, nothing is changed.
func Import(l Layout, files []string, now time.Time) (done []Renewed, err error) {
	held, err := lock(l.Dir, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	v := newSurvey(l, Spec{Now: func() time.Time { return now }})
	v.loadCAs()
	errs := v.problems
	var changes []*change
	for _, file := range files {
		chain, targets, err := v.match(file)
		for _, f := range targets {
			if problem := v.unfit(f, chain); problem != "" {
				err = errors.Join(err, &Misfit{File: file, Problem: "not taken for " + f.path + ": " + problem})
			}
			changes = append(changes, &change{leafFile: f, chain: chain})
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	done, errs = v.install(changes)
	return done, errors.Join(errs...)
}

// match reads a file of Import, and finds the files whose key it fits.
func (v *survey) match(file string) (chain []*x509.Certificate, targets []leafFile, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	if err = checkPEM(data); err == nil {
		chain, _, err = parseCertificates(data)
	}
	if err == nil && len(chain) == 0 {
		err = errors.New("holds no certificate")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, f := range v.leafFiles() {
		if f.problem == "" && fits(f.pair.key, chain[0].PublicKey) {
			targets = append(targets, f)
		}
	}
	if len(targets) == 0 {
		return nil, nil, &Misfit{File: file, Problem: fmt.Sprintf("is for %q, and its key is none of those in %s", chain[0].Subject, v.layout.Dir),
			Hint: "import it where its request was made; its own certificate comes first in the file"}
	}
	return chain, targets, nil
}

// unfit returns why a certificate may not take the place of another; "" if it may.
func (v *survey) unfit(f leafFile, chain []*x509.Certificate) string {
	old, c, cas := f.pair.chain[0], chain[0], v.pairs[f.row.issuer].chain
	if doubt := v.clockDoubt(); doubt != "" {
		return doubt
	}
	switch lost := lostNames(old, c); {
	case v.layout.isElsewhere(f.path):
		return reasonYours
	case c.IsCA:
		return "it is the certificate of a CA"
	case c.Subject.String() != old.Subject.String():
		return fmt.Sprintf("it is for %q, and the one in use for %q", c.Subject, old.Subject)
	case len(lost) > 0:
		return "it lacks names that the one in use has: " + strings.Join(lost, ", ")
	case !current(c, v.now):
		return fmt.Sprintf("it is valid from %s to %s, and it is now %s", day(c.NotBefore), day(c.NotAfter), day(v.now))
	case !signed(chain, cas):
		return "it is not signed by a CA in " + v.layout.Cert(f.row.issuer)
	case outlives(chain, cas) != nil:
		return fmt.Sprintf("it ends on %s, and its CA before that, on %s", day(c.NotAfter), day(outlives(chain, cas).NotAfter))
	}
	for _, use := range old.ExtKeyUsage {
		if !allows(c, use) {
			return fmt.Sprintf("it is not issued for %s use", useName(use))
		}
	}
	if err := verify(chain, cas, v.now); err != nil {
		return fmt.Sprintf("crypto/x509 refuses it: %v", err)
	}
	if f.row.name == NameKubernetes {
		return v.distrust(chain)
	}
	return ""
}

// outlives returns the CA that ends before the certificate that it has signed; nil if one of the CAs
// does not. The end of such a certificate would be believed, and come sooner.
func outlives(chain, cas []*x509.Certificate) (ca *x509.Certificate) {
	for i := range cas {
		switch {
		case !signed(chain, cas[i:i+1]):
		case !chain[0].NotAfter.After(cas[i].NotAfter):
			return nil
		default:
			ca = cas[i]
		}
	}
	return ca
}

// distrust names a kubeconfig here whose user could no longer verify the API server.
func (v *survey) distrust(chain []*x509.Certificate) string {
	for _, k := range v.configs {
		v.loadConfig(k)
		if a := v.access[k.name]; a != nil && !signed(chain, a.cas) {
			return fmt.Sprintf("%s does not trust the CA that has signed it", k.path(v.layout))
		}
	}
	return ""
}

// lostNames lists the names that a client could use with the old certificate only.
func lostNames(old, new *x509.Certificate) (lost []string) {
	has := sans(new)
	for _, name := range sans(old) {
		if !slices.ContainsFunc(has, func(n string) bool { return strings.EqualFold(n, name) }) {
			lost = append(lost, name)
		}
	}
	return lost
}
