package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"kthwd/appliance/durable"
)

// The steps with which a controller moves to a CA of etcd's own: see Stage. Each leaves a
// directory in which kthwd starts, whenever it is interrupted, and can be repeated.

// NewEtcdCA makes the key of etcd's own CA, or uses the one that an interrupted call has
// left, and returns a certificate for it, which it does not write.
func NewEtcdCA(l Layout) (ca *x509.Certificate, err error) {
	return ca, locked(l, func(v *survey) error {
		r := etcdRow(NameEtcdCA)
		key, err := v.keyOf(r)
		if err != nil {
			return err
		}
		ca, err = issue(r, nil, key, pair{}, v.now)
		return err
	})
}

// TrustEtcdCA makes etcd trust ca besides the cluster's CA, from its next start on.
func TrustEtcdCA(l Layout, ca *x509.Certificate) error {
	return locked(l, func(v *survey) error {
		if !mayIssue(ca) {
			return fmt.Errorf("%q is not the certificate of a CA", ca.Subject)
		}
		if p := v.load(etcdRow(NameEtcdCA)); p.key != nil && !fits(p.key, ca.PublicKey) {
			return &Misfit{File: l.EtcdCAKey(), Problem: "is the key of another CA than the one of the cluster's etcd", Hint: "move it away"}
		}
		shared := v.load(v.row(NameCA))
		if err := errors.Join(v.problems...); err != nil {
			return err
		}
		return durable.Write(l.EtcdCA(), encodeCertificates(append([]*x509.Certificate{ca}, shared.chain...)), modePublic)
	})
}

// EtcdRequest returns a request (PKCS #10, DER) for this controller's etcd.pem, with the
// names in its kubernetes.pem. It makes etcd.pem's key if there is none; the key stays in
// the directory.
func EtcdRequest(l Layout) (request []byte, err error) {
	return request, locked(l, func(v *survey) error {
		key, err := v.keyOf(etcdRow(NameEtcd))
		if err != nil {
			return err
		}
		like, err := leafOf(l.Cert(NameKubernetes))
		if err != nil {
			return err
		}
		request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			RawSubject: like.RawSubject, DNSNames: like.DNSNames, IPAddresses: like.IPAddresses,
		}, key)
		return err
	})
}

// SignEtcdRequest issues an etcd.pem (DER) for a request whose sender is known to be a
// controller. Without the key of etcd's CA it fails with ErrNoCAKey.
func SignEtcdRequest(l Layout, request []byte) (cert []byte, err error) {
	return cert, locked(l, func(v *survey) error {
		r := etcdRow(NameEtcd)
		in, err := x509.ParseCertificateRequest(request)
		if err == nil {
			err = in.CheckSignature()
		}
		if err != nil {
			return fmt.Errorf("a request for etcd.pem: %w", err)
		}
		ca := v.load(etcdRow(NameEtcdCA))
		switch {
		case len(v.problems) > 0:
			return errors.Join(v.problems...)
		case ca.key == nil || ca.chain == nil:
			return fmt.Errorf("%s: %w", l.EtcdCAKey(), ErrNoCAKey)
		}
		template, err := r.template(nil, in.PublicKey, v.now)
		if err != nil {
			return err
		}
		template.RawSubject, template.DNSNames, template.IPAddresses = in.RawSubject, in.DNSNames, in.IPAddresses
		within(template, ca.chain[0])
		cert, err = x509.CreateCertificate(rand.Reader, template, ca.chain[0], in.PublicKey, ca.key)
		return err
	})
}

// EtcdPair returns the certificate with etcd.pem's key, if it fits that key and etcd's own
// CA; ok is false if it does not.
func EtcdPair(l Layout, cert []byte) (certPEM, keyPEM []byte, ok bool) {
	leaf, err := x509.ParseCertificate(cert)
	if err != nil {
		return nil, nil, false
	}
	keyPEM, _, err = read(l.Key(NameEtcd))
	if err != nil {
		return nil, nil, false
	}
	key, err := parseKey(keyPEM)
	ca, caErr := EtcdCA(l)
	if errors.Join(err, caErr) != nil || !fits(key, leaf.PublicKey) || leaf.CheckSignatureFrom(ca) != nil {
		return nil, nil, false
	}
	return encodeCertificates([]*x509.Certificate{leaf}), keyPEM, true
}

// UseEtcdCertificate makes etcd show the certificate from its next start on.
func UseEtcdCertificate(l Layout, cert []byte) error {
	return locked(l, func(*survey) error {
		data, _, ok := EtcdPair(l, cert)
		if !ok {
			return &Misfit{File: l.Cert(NameEtcd), Problem: "would not fit its key or the CA in", Other: l.EtcdCA()}
		}
		return durable.Write(l.Cert(NameEtcd), data, modePublic)
	})
}

// TrustEtcdCAOnly ends etcd's trust in the cluster's CA, from its next start on.
func TrustEtcdCAOnly(l Layout) error {
	return locked(l, func(v *survey) error {
		shared, both := v.load(v.row(NameCA)), v.load(etcdRow(NameEtcdCA))
		own := slices.DeleteFunc(both.chain, func(c *x509.Certificate) bool { return slices.ContainsFunc(shared.chain, c.Equal) })
		leaf := v.load(etcdRow(NameEtcd))
		switch {
		case len(v.problems) > 0:
			return errors.Join(v.problems...)
		case len(own) == 0 || !signed(leaf.chain, own):
			return &Misfit{File: l.Cert(NameEtcd), Problem: "not signed by etcd's own CA in", Other: l.EtcdCA()}
		}
		return durable.Write(l.EtcdCA(), encodeCertificates(own), modePublic)
	})
}

// EtcdCA returns the certificate of etcd's own CA.
func EtcdCA(l Layout) (*x509.Certificate, error) {
	cas, err := readCAs(l.EtcdCA())
	if err != nil {
		return nil, err
	}
	shared, err := readCAs(l.CA())
	if err != nil {
		return nil, err
	}
	for _, c := range cas {
		if !slices.ContainsFunc(shared, c.Equal) {
			return c, nil
		}
	}
	return nil, &Misfit{File: l.EtcdCA(), Problem: "holds no CA besides that of the cluster"}
}

// EtcdCAs returns the certificates in etcd-ca.pem.
func EtcdCAs(l Layout) ([]*x509.Certificate, error) { return readCAs(l.EtcdCA()) }

// ClusterCAs returns the certificates in ca.pem.
func ClusterCAs(l Layout) ([]*x509.Certificate, error) { return readCAs(l.CA()) }

func readCAs(path string) ([]*x509.Certificate, error) {
	data, _, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	chain, _, err := parseCertificates(data)
	if err == nil && len(chain) == 0 {
		err = errors.New("holds no certificate")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return chain, nil
}

// locked calls step with a survey of the directory, which is locked meanwhile.
func locked(l Layout, step func(*survey) error) error {
	held, err := lock(l.Dir, syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer held.Close()
	return step(newSurvey(l, Spec{}))
}

// etcdRow returns one of etcd's rows, which a directory on its way does not have yet.
func etcdRow(name string) row {
	return certificates[slices.IndexFunc(certificates, func(r row) bool { return r.name == name })]
}

// keyOf reads the key of a row, or makes it.
func (v *survey) keyOf(r row) (crypto.Signer, error) {
	path := v.layout.Key(r.name)
	data, _, err := read(path)
	if err == nil {
		return parseKey(data)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	if data, err = encodeKey(key); err != nil {
		return nil, err
	}
	return key, write(v.layout.Dir, []file{{path: path, data: data, mode: modeSecret, isKey: true}})
}

// ParseCA parses one certificate (DER) of a CA.
func ParseCA(der []byte) (*x509.Certificate, error) {
	ca, err := x509.ParseCertificate(der)
	if err == nil && !mayIssue(ca) {
		err = fmt.Errorf("%q is not the certificate of a CA", ca.Subject)
	}
	return ca, err
}

// FitsEtcdCAKey reports whether etcd-ca-key.pem is here and belongs to the CA.
func FitsEtcdCAKey(l Layout, ca *x509.Certificate) bool {
	data, _, err := read(l.EtcdCAKey())
	if err != nil {
		return false
	}
	key, err := parseKey(data)
	return err == nil && fits(key, ca.PublicKey)
}
