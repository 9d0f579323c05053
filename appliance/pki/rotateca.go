package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"kthwd/appliance/durable"
)

// CAID is the ID of a CA: the SHA-256 of its public key, in hexadecimal digits, as in the hash
// with which worker nodes join.
func CAID(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// CA is a CA that a rotation can replace, NameCA, NameFrontProxyCA or NameEtcdCA, as the files of a controller have it.
type CA struct {
	Trusted []*x509.Certificate // in the file of the certificate, in its order
	Key     []byte              // nil where it is kept elsewhere
	Signer  *x509.Certificate   // that one of Trusted to which the key belongs; without a key, the one that has signed the controller's certificate
	Next    []byte              // the key that a rotation has brought, which does not sign yet; nil for none
}

// Trusts reports whether the CA with this ID is in the file.
func (c CA) Trusts(id string) bool { return slices.Contains(c.IDs(), id) }

// IDs are those of the CAs in the file.
func (c CA) IDs() (ids []string) {
	for _, ca := range c.Trusted {
		ids = append(ids, CAID(ca))
	}
	return ids
}

// Signs is the ID of Signer; empty if no CA of Trusted is that.
func (c CA) Signs() string {
	if c.Signer == nil {
		return ""
	}
	return CAID(c.Signer)
}

// Certificate is the CA with this ID; nil if the file lacks it.
func (c CA) Certificate(id string) *x509.Certificate {
	if i := slices.Index(c.IDs(), id); i >= 0 {
		return c.Trusted[i]
	}
	return nil
}

// OwnCertificate names the certificate by which a controller shows whose key signs for the CA of that
// name.
func OwnCertificate(ca string) string {
	switch ca {
	case NameFrontProxyCA:
		return NameFrontProxyClient
	case NameEtcdCA:
		return NameEtcd
	}
	return NameKubernetes
}

// ReadCA reads the CA of that name.
func ReadCA(l Layout, name string) (c CA, err error) {
	data, _, err := read(l.Cert(name))
	if err == nil {
		c.Trusted, _, err = parseCertificates(data)
	}
	if err == nil && len(c.Trusted) == 0 {
		err = errors.New("holds no certificate")
	}
	if err != nil {
		return c, fmt.Errorf("%s: %w", l.Cert(name), err)
	}
	if c.Next, _, err = read(l.NextCAKey(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	if c.Key, _, err = read(l.Key(name)); errors.Is(err, fs.ErrNotExist) {
		c.Signer = signerOf(l, name, c.Trusted)
		return c, nil
	}
	if err != nil {
		return c, err
	}
	key, err := parseKey(c.Key)
	if err != nil {
		return c, fmt.Errorf("%s: %w", l.Key(name), err)
	}
	p := pair{key: key, chain: slices.Clone(c.Trusted)}
	if p.signerFirst(time.Now()); fits(key, p.chain[0].PublicKey) {
		c.Signer = p.chain[0]
	}
	return c, nil
}

// Shows is the ID of the CA in the file of that name which has signed this controller's certificate;
// empty for none.
func Shows(l Layout, name string, cas []*x509.Certificate) string {
	if ca := signerOf(l, name, cas); ca != nil {
		return CAID(ca)
	}
	return ""
}

// signerOf is the CA that has signed the controller's certificate; nil if that cannot be read.
func signerOf(l Layout, name string, cas []*x509.Certificate) *x509.Certificate {
	data, _, err := read(l.Cert(OwnCertificate(name)))
	if err != nil {
		return nil
	}
	chain, _, err := parseCertificates(data)
	if err != nil {
		return nil
	}
	for i := range cas {
		if signed(chain, cas[i:i+1]) {
			return cas[i]
		}
	}
	return nil
}

// NewCA makes a CA to replace the one that signs, and its key as PEM. Its subject is that of
// the old one with a serial number, so that both can be told apart where only subjects are named,
// as in a TLS handshake.
func NewCA(old *x509.Certificate, now time.Time) (ca *x509.Certificate, key []byte, err error) {
	signer, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template, err := certificates[0].template(nil, signer.Public(), now)
	if err != nil {
		return nil, nil, err
	}
	template.Subject = old.Subject
	template.Subject.ExtraNames, template.Subject.Names = nil, nil
	template.Subject.SerialNumber = hex.EncodeToString(template.SubjectKeyId[:4])
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, nil, fmt.Errorf("make a CA: %w", err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		return nil, nil, err
	}
	key, err = encodeKey(signer)
	return ca, key, err
}

// KeyOfCA reports whether a private key, as PEM, is that of the CA.
func KeyOfCA(key []byte, ca *x509.Certificate) bool {
	signer, err := parseKey(key)
	return err == nil && fits(signer, ca.PublicKey)
}

// CARotatable returns why the CA of that name cannot be rotated by kthwd: because a file is
// elsewhere, cannot be replaced, or cannot be signed anew here. life is that of new certificates; 0 means a year.
func CARotatable(l Layout, name string, life time.Duration, now time.Time) error {
	held, err := lock(l.Dir, syscall.LOCK_SH)
	if err != nil {
		return err
	}
	defer held.Close()
	var problems []error
	for _, path := range []string{l.Cert(name), l.Key(name)} {
		if l.isElsewhere(path) {
			problems = append(problems, &Misfit{File: path, Problem: reasonYours, Hint: "copy it to " + l.Dir + " and take its line out of files"})
		} else if err := durable.Replaceable(path); err != nil && (path != l.Key(name) || !errors.Is(err, fs.ErrNotExist)) {
			problems = append(problems, fmt.Errorf("%s cannot be replaced: %w", path, err))
		}
	}
	v := newSurvey(l, Spec{LeafLife: life, Now: func() time.Time { return now }})
	v.loadCAs()
	v.moves = name
	for _, f := range v.leafFiles() {
		if f.row.issuer != name {
			continue
		}
		if reason, hint := v.cannot(f); reason != "" && !strings.HasPrefix(reason, reasonNoKey) { // the key comes with the rotation
			problems = append(problems, f.refused(reason, hint))
		}
	}
	return errors.Join(append(problems, v.problems...)...)
}

// SetCA gives a directory the CAs of that name to trust, those of the cluster also in kthwd's
// kubeconfigs, and the key that signs, if it is not nil. It writes in an order in which the key fits
// a CA in the file at each moment, also in a crash. A nil next removes the key that a rotation keeps. It returns the files that it has changed.
func SetCA(l Layout, name string, trusted []*x509.Certificate, key, next []byte) (changed []string, err error) {
	held, err := lock(l.Dir, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	is, err := ReadCA(l, name)
	if err != nil {
		return nil, err
	}
	if key != nil && !slices.ContainsFunc(trusted, func(ca *x509.Certificate) bool { return KeyOfCA(key, ca) }) {
		return nil, fmt.Errorf("%s: without the CA whose key signs", l.Cert(name))
	}
	set := func(path string, is, data []byte) error {
		if bytes.Equal(is, data) {
			return nil
		}
		changed = append(changed, path)
		if is == nil {
			return durable.Write(path, data, modeSecret)
		}
		return durable.Replace(path, data)
	}
	if next != nil && !bytes.Equal(next, is.Next) {
		if err := durable.Write(l.NextCAKey(name), next, modeSecret); err != nil {
			return nil, err
		}
	}
	both := slices.Clone(trusted)
	for _, ca := range is.Trusted {
		if is.Key != nil && KeyOfCA(is.Key, ca) && !slices.ContainsFunc(both, ca.Equal) {
			both = append(both, ca)
		}
	}
	file, _, err := read(l.Cert(name))
	if err != nil {
		return nil, err
	}
	between := caFile(file, both)
	steps := [](func() error){
		func() error { return set(l.Cert(name), file, between) },
		func() error {
			if key == nil {
				return nil
			}
			return set(l.Key(name), is.Key, key)
		},
		func() error { return set(l.Cert(name), between, caFile(between, trusted)) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return changed, err
		}
	}
	if name == NameCA {
		more, err := trustInKubeconfigs(l, is.Trusted, trusted)
		if changed = append(changed, more...); err != nil {
			return changed, err
		}
	}
	if next == nil && is.Next != nil {
		if err := os.Remove(l.NextCAKey(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return changed, err
		}
	}
	return changed, nil
}

// caFile is a file of CAs with others in it: what stays is as it was, with the text before it, and
// what comes is behind it.
func caFile(data []byte, trusted []*x509.Certificate) (next []byte) {
	from := data
	var there []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		ca, err := x509.ParseCertificate(block.Bytes)
		if err == nil && slices.ContainsFunc(trusted, ca.Equal) {
			next, there = append(next, from[:len(from)-len(rest)]...), append(there, ca)
		}
		from = rest
	}
	next = append(next, from...)
	for _, ca := range trusted {
		if !slices.ContainsFunc(there, ca.Equal) {
			next = append(ended(next), encodeCertificates([]*x509.Certificate{ca})...)
		}
	}
	return next
}

// WithoutCA is a list of certificates, as PEM, without that CA; and the number of the others.
func WithoutCA(data []byte, ca *x509.Certificate) (rest []byte, others int) {
	from := data
	for block, after := pem.Decode(data); block != nil; block, after = pem.Decode(after) {
		if !bytes.Equal(block.Bytes, ca.Raw) {
			rest = append(rest, from[:len(from)-len(after)]...)
			others++
		}
		from = after
	}
	return append(rest, from...), others
}

// trustInKubeconfigs gives the kubeconfigs that contain CAs of before the new ones.
func trustInKubeconfigs(l Layout, before, trusted []*x509.Certificate) (changed []string, err error) {
	known := slices.Concat(before, trusted)
	for _, k := range kubeconfigs {
		path := k.path(l)
		data, _, err := read(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return changed, err
		}
		var f kubeconfigFile
		if err := decodeYAML(data, &f); err != nil {
			return changed, fmt.Errorf("%s: %w", path, err)
		}
		cluster, _, err := f.current()
		if err != nil {
			return changed, fmt.Errorf("%s: %w", path, err)
		}
		old := cluster.Cluster.CAData
		if old == "" { // it names a file
			continue
		}
		a, err := parseKubeconfig(data, filepath.Dir(path))
		if err != nil {
			return changed, fmt.Errorf("%s: %w", path, err)
		}
		ofCluster := func(ca *x509.Certificate) bool { return slices.ContainsFunc(known, ca.Equal) }
		if !slices.ContainsFunc(a.cas, ofCluster) {
			continue // of another cluster
		}
		keep := slices.DeleteFunc(slices.Clone(a.cas), ofCluster)
		next := base64.StdEncoding.EncodeToString(encodeCertificates(append(slices.Clone(trusted), keep...)))
		if next == old {
			continue
		}
		if !bytes.Contains(data, []byte(old)) {
			return changed, &Misfit{File: path, Problem: "its CA is spread over several lines", Hint: "write it on one line, as kubectl config does"}
		}
		if err := durable.Replace(path, bytes.ReplaceAll(data, []byte(old), []byte(next))); err != nil {
			return changed, err
		}
		changed = append(changed, path)
	}
	return changed, nil
}

// SignedByOthers lists the files with a certificate that another CA of the file of that name has signed
// than that one.
func SignedByOthers(l Layout, name string, signer *x509.Certificate) (paths []string) {
	v := newSurvey(l, Spec{})
	v.loadCAs()
	for _, f := range v.leafFiles() {
		if f.row.issuer == name && len(f.pair.chain) > 0 && !signed(f.pair.chain, []*x509.Certificate{signer}) && signed(f.pair.chain, v.pairs[name].chain) {
			paths = append(paths, f.path)
		}
	}
	return paths
}

// moved reports whether another CA of the same file has signed a leaf than the one that signs now.
func (v *survey) moved(f leafFile) bool {
	cas := v.pairs[f.row.issuer].chain
	return len(cas) > 1 && len(f.pair.chain) > 0 && !signed(f.pair.chain, cas[:1]) && signed(f.pair.chain, cas)
}

// Probe makes a short client certificate for the subject of the controller's own, signed by a CA that
// is to take the place of the one of that name: a server that accepts it trusts that CA. For etcd it has the
// names of the controller's own, too, which etcd may ask for.
func Probe(l Layout, name string, ca *x509.Certificate, caKey []byte, now time.Time) (tls.Certificate, error) {
	none, own := tls.Certificate{}, l.Cert(OwnCertificate(name))
	data, _, err := read(own)
	if err != nil {
		return none, err
	}
	chain, _, err := parseCertificates(data)
	if err == nil && len(chain) == 0 {
		err = errors.New("holds no certificate")
	}
	if err != nil {
		return none, fmt.Errorf("%s: %w", own, err)
	}
	signer, err := parseKey(caKey)
	if err != nil {
		return none, err
	}
	key, err := newKey()
	if err != nil {
		return none, err
	}
	template, err := row{cn: chain[0].Subject.CommonName, issuer: name, uses: client, life: time.Hour}.template(nil, key.Public(), now)
	if err != nil {
		return none, err
	}
	template.RawSubject = chain[0].RawSubject
	if name == NameEtcdCA {
		template.DNSNames, template.IPAddresses = chain[0].DNSNames, chain[0].IPAddresses
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), signer)
	if err != nil {
		return none, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: crypto.PrivateKey(key)}, nil
}

// PublicTokenKeys puts the public keys in service-account.pem in the place of their certificates:
// nothing needs these, and a CA that has signed one could not be dropped. Every controller gets the same file.
// It reports whether the file was another one.
func PublicTokenKeys(l Layout) (changed bool, err error) {
	held, err := lock(l.Dir, syscall.LOCK_EX)
	if err != nil {
		return false, err
	}
	defer held.Close()
	path := l.Cert(NameServiceAccount)
	data, _, err := read(path)
	if err != nil {
		return false, err
	}
	var keys []byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return false, fmt.Errorf("%s: %w", path, err)
			}
			block, changed = &pem.Block{Type: "PUBLIC KEY", Bytes: cert.RawSubjectPublicKeyInfo}, true
		}
		keys = append(keys, pem.EncodeToMemory(block)...)
	}
	if !changed {
		return false, nil
	}
	return true, durable.Replace(path, keys)
}
