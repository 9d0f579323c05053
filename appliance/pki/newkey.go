package pki

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"kthwd/appliance/durable"
)

// keyMaker makes new keys: one for all files that share the old one.
type keyMaker map[string]crypto.Signer

// give gives a file another key.
func (k keyMaker) give(f *leafFile) error {
	if !f.config {
		if info, err := os.Lstat(f.keyPath); err != nil || info.Mode()&fs.ModeSymlink != 0 {
			return errors.Join(err, errors.New("its key is a symbolic link, which a new one would replace by a file"))
		}
	}
	old, err := x509.MarshalPKIXPublicKey(f.pair.key.Public())
	if err != nil {
		return err
	}
	if f.newKey = k[string(old)]; f.newKey == nil {
		if f.newKey, err = newKey(); err != nil {
			return err
		}
		k[string(old)] = f.newKey
	}
	return nil
}

// public is the key that the next certificate is for.
func (f leafFile) public() crypto.PublicKey {
	if f.newKey != nil {
		return f.newKey.Public()
	}
	return f.pair.chain[0].PublicKey
}

// ofKey is the file of the key, to be kept and replaced as the certificate is; false where that does
// not change, and in a kubeconfig, which has both.
func (f leafFile) ofKey() (leafFile, bool) {
	return leafFile{path: f.keyPath, data: f.keyData, mode: modeSecret}, f.newKey != nil && !f.config
}

// withKey returns a kubeconfig with another private key.
func (f leafFile) withKey(data []byte) ([]byte, error) {
	var k kubeconfigFile
	if err := decodeYAML(data, &k); err != nil {
		return nil, err
	}
	_, user, err := k.current()
	if err != nil {
		return nil, err
	}
	key, err := encodeKey(f.newKey)
	if err != nil {
		return nil, err
	}
	return replaced(data, user.User.KeyData, base64.StdEncoding.EncodeToString(key))
}

// finishNewKeys ends renewals with another key that a crash has interrupted between their two
// files: the key has its name already, and the certificate, which is whole, has not. Call it with
// the directory locked.
func finishNewKeys(l Layout) error {
	for _, r := range rowsOf(l) {
		cert, key := r.in(l).Cert(r.name), r.in(l).Key(r.name)
		if r.isCA() || r.publicOnly || r.given || l.isElsewhere(cert) || l.isElsewhere(key) {
			continue
		}
		hidden := durable.Hidden(cert)
		if !there(hidden) || !there(cert) || isPair(cert, key) || !isPair(hidden, key) {
			continue
		}
		if err := os.Rename(hidden, cert); err != nil {
			return err
		}
		if err := durable.Sync(filepath.Dir(cert)); err != nil {
			return err
		}
	}
	return nil
}

// isPair reports whether the files are a certificate and its key.
func isPair(cert, key string) bool {
	certData, _, err := read(cert)
	if err != nil {
		return false
	}
	keyData, _, err := read(key)
	if err != nil {
		return false
	}
	chain, _, err := parseCertificates(certData)
	if err != nil || len(chain) == 0 || checkPEM(certData) != nil {
		return false
	}
	signer, err := parseKey(keyData)
	return err == nil && fits(signer, chain[0].PublicKey)
}
