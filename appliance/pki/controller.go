package pki

import (
	"crypto"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// ControllerNames distinguish a controller's certificate from every other certificate
// that the cluster's CA has signed. A certificate matches by one of the common names or
// by one of the hosts.
type ControllerNames struct {
	CommonNames []string
	Hosts       []string
}

// controllerHosts are the names by which pods reach the API server. Each controller's
// certificate serves the API, so it has one of them. The bare name kubernetes is not
// among them, because a machine may have that name.
var controllerHosts = clusterNames[1:]

// NamesOf derives the names from the certificate of one controller. The guide
// and kthwd give each controller the common name kubernetes. A kubernetes.pem of
// another origin may have the machine's name there. Then the names of the API server's
// service decide, which all controllers share, or the common name if it has none of those.
//
// Common names come first because Kubernetes' signers restrict the common name of a
// requested certificate more than its hosts.
func NamesOf(leaf *x509.Certificate) (ControllerNames, error) {
	cn := leaf.Subject.CommonName
	hosts := slices.DeleteFunc(slices.Clone(controllerHosts), func(h string) bool { return leaf.VerifyHostname(h) != nil })
	switch {
	case cn == controllerCN:
		return ControllerNames{CommonNames: []string{cn}}, nil
	case len(hosts) > 0:
		return ControllerNames{Hosts: hosts}, nil
	case cn != "" && !strings.HasPrefix(cn, "system:"):
		return ControllerNames{CommonNames: []string{cn}}, nil
	}
	return ControllerNames{}, fmt.Errorf("has neither the common name %s nor the name %s: nothing tells it from a worker's certificate", controllerCN, controllerHosts[1])
}

// Controllers reads the names from a certificate's file.
func Controllers(certFile string) (ControllerNames, error) {
	leaf, err := leafOf(certFile)
	if err != nil {
		return ControllerNames{}, err
	}
	names, err := NamesOf(leaf)
	if err != nil {
		return names, &Misfit{File: certFile, Problem: err.Error(), Hint: "issue it with kthwd pki controller NAME ADDRESS, where the key of the CA is"}
	}
	return names, nil
}

// HostsOf returns the names and addresses in a certificate's file; none if it cannot be read.
func HostsOf(certFile string) (hosts []string) {
	leaf, err := leafOf(certFile)
	if err != nil {
		return nil
	}
	hosts = slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return hosts
}

func leafOf(certFile string) (*x509.Certificate, error) {
	data, _, err := read(certFile)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	chain, _, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("%s: holds no certificate", certFile)
	}
	return chain[0], nil
}

// Match reports whether the certificate is a controller's. Without names, every
// certificate matches.
func (n ControllerNames) Match(leaf *x509.Certificate) bool {
	if n.Empty() {
		return true
	}
	return n.claimed(leaf)
}

// ClaimedBy reports whether a certificate for this request would match. Without names,
// no request does.
func (n ControllerNames) ClaimedBy(r *x509.CertificateRequest) bool {
	return n.claimed(&x509.Certificate{Subject: r.Subject, DNSNames: r.DNSNames, IPAddresses: r.IPAddresses})
}

func (n ControllerNames) claimed(leaf *x509.Certificate) bool {
	if slices.Contains(n.CommonNames, leaf.Subject.CommonName) {
		return true
	}
	return slices.ContainsFunc(n.Hosts, func(host string) bool { return leaf.VerifyHostname(host) == nil })
}

// Empty reports whether there are no names.
func (n ControllerNames) Empty() bool { return len(n.CommonNames) == 0 && len(n.Hosts) == 0 }

// Join returns the names of both.
func (n ControllerNames) Join(o ControllerNames) ControllerNames {
	return ControllerNames{CommonNames: unique(slices.Concat(n.CommonNames, o.CommonNames)), Hosts: unique(slices.Concat(n.Hosts, o.Hosts))}
}

// String describes the names in an error or a log line.
func (n ControllerNames) String() string {
	if len(n.CommonNames) > 0 {
		return "the common name " + strings.Join(n.CommonNames, " or ")
	}
	return "the name " + strings.Join(n.Hosts, " or ")
}

// SharesCA reports whether two files of CA certificates have a certificate in common. A
// missing file has none.
func SharesCA(a, b string) (bool, error) {
	var pools [2][]*x509.Certificate
	for i, path := range []string{a, b} {
		data, _, err := read(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err == nil {
			pools[i], _, err = parseCertificates(data)
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", path, err)
		}
	}
	return slices.ContainsFunc(pools[0], func(c *x509.Certificate) bool {
		return slices.ContainsFunc(pools[1], c.Equal)
	}), nil
}

// SharedSecret derives a key that only the controllers of the cluster can derive: HKDF
// (RFC 5869) with SHA-256 over the service-account key, which all of them have and etcd
// does not. purpose separates the keys of different uses. What it has sealed is verified with
// all of SharedSecrets, because the service-account key can be rotated.
func SharedSecret(l Layout, purpose string) ([]byte, error) {
	all, err := SharedSecrets(l, purpose)
	if err != nil {
		return nil, err
	}
	return all[0].Key, nil
}

// Secret is a key of SharedSecrets.
type Secret struct {
	ID  string // of the service-account key that it is derived from; every cluster publishes it
	Key []byte
}

// SharedSecrets derives a key from each service-account key that this controller has: from the
// one that signs tokens first, and during a rotation from the other one as well.
func SharedSecrets(l Layout, purpose string) (all []Secret, err error) {
	path := l.Key(NameServiceAccount)
	data, _, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if _, err := parseKey(data); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range tokenParts(data, privateID) {
		key, err := parseKey(p.text)
		if err != nil {
			break // what follows the last key
		}
		secret, err := secretOf(key, purpose)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, Secret{p.id, secret})
	}
	return all, nil
}

func secretOf(key crypto.Signer, purpose string) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key) // one form, whichever the file has
	if err != nil {
		return nil, err
	}
	return hkdf.Key(sha256.New, der, nil, "kthwd "+purpose, sha256.Size)
}

// ServiceNames returns the names of the API server's service that a certificate is valid
// for, the longest last.
func ServiceNames(certFile string) ([]string, error) {
	leaf, err := leafOf(certFile)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(controllerHosts), func(h string) bool { return leaf.VerifyHostname(h) != nil }), nil
}

// CertifiedFor reports whether a certificate can be read and is valid for a name or address.
func CertifiedFor(certFile, host string) bool {
	leaf, err := leafOf(certFile)
	return err == nil && leaf.VerifyHostname(host) == nil
}
