package pki

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Fingerprints returns what the controllers of a cluster compare to verify that they
// share their keys: for each file that must be shared, by its path, a salted SHA-256
// of every public key or encryption key in it. A file that is missing or holds no key
// has none. The salt makes two clusters incomparable, and the result reveals no key.
func Fingerprints(l Layout, salt []byte) (map[string][]string, error) {
	all := map[string][]string{}
	for _, shared := range []struct {
		path string
		keys func([]byte) ([][]byte, error)
	}{
		{l.CA(), publicKeys},
		{l.Cert(NameServiceAccount), publicKeys},
		{l.Cert(NameFrontProxyCA), publicKeys},
		{l.EtcdCA(), publicKeys},
		{l.EncryptionConfig(), encryptionKeys},
	} {
		data, _, err := read(shared.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var keys [][]byte
		if err == nil {
			keys, err = shared.keys(data)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", shared.path, err)
		}
		for _, key := range keys {
			all[shared.path] = append(all[shared.path], fingerprint(salt, filepath.Base(shared.path), key))
		}
	}
	return all, nil
}

// Prints returns a salted SHA-256 of every public key in the certificates and public keys of
// a PEM file, or of every encryption key in another file. Content without keys has none.
func Prints(data, salt []byte) (prints []string) {
	keysOf := encryptionKeys
	if bytes.Contains(data, []byte("-----BEGIN")) {
		keysOf = publicKeys
	}
	keys, err := keysOf(data)
	if err != nil {
		return nil
	}
	for _, key := range keys {
		prints = append(prints, fingerprint(salt, "", key))
	}
	return prints
}

func fingerprint(salt []byte, name string, key []byte) string {
	h := sha256.New()
	h.Write(salt)
	h.Write([]byte(name + "\x00"))
	h.Write(key)
	return hex.EncodeToString(h.Sum(nil))
}

// NotShared returns the Misfit of a file whose Fingerprints differ from the cluster's.
func NotShared(path string) *Misfit {
	hint := "copy " + filepath.Base(path) + " from another controller"
	if base := filepath.Base(path); base == NameServiceAccount+".pem" {
		hint += ", and its key with it"
	}
	return &Misfit{File: path, Problem: "not that of the other controllers; all must have the same", Hint: hint}
}

func publicKeys(data []byte) (keys [][]byte, err error) {
	_, public, err := parseCertificates(data)
	if err != nil {
		return nil, err
	}
	for _, k := range public {
		der, err := x509.MarshalPKIXPublicKey(crypto.PublicKey(k))
		if err != nil {
			return nil, err
		}
		keys = append(keys, der)
	}
	return keys, nil
}

// encryptionKeys returns the secrets in an EncryptionConfiguration, of all providers, and for each
// key server its version and name, which the values have that it encrypts.
func encryptionKeys(data []byte) (keys [][]byte, err error) {
	var doc yaml.Node
	if err := decodeYAML(data, &doc); err != nil {
		return nil, err
	}
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		for i, c := range n.Content {
			if n.Kind == yaml.MappingNode && i%2 == 1 && n.Content[i-1].Value == "secret" && c.Kind == yaml.ScalarNode {
				keys = append(keys, []byte(c.Value))
			}
			if n.Kind == yaml.MappingNode && i%2 == 1 && n.Content[i-1].Value == "kms" {
				var server struct {
					Version string `yaml:"apiVersion"`
					Name    string `yaml:"name"`
				}
				if c.Decode(&server) == nil && server.Name != "" {
					keys = append(keys, []byte("kms:"+server.Version+":"+server.Name))
				}
			}
			walk(c)
		}
	}
	walk(&doc)
	slices.SortFunc(keys, slices.Compare)
	return keys, nil
}
