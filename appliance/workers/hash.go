package workers

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"kthwd/appliance/advice"
	"kthwd/appliance/text"
)

// hashOf is the hash of a CA's public key, as kubeadm writes it.
func hashOf(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// HashesOf returns the hash of the public key of each certificate in a PEM file.
func HashesOf(file []byte) (hashes []string, err error) {
	for block, rest := pem.Decode(file); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if h := hashOf(cert); !slices.Contains(hashes, h) {
			hashes = append(hashes, h)
		}
	}
	if len(hashes) == 0 {
		return nil, errors.New("it has no certificate")
	}
	return hashes, nil
}

var hash = text.Pattern(`^sha256:[0-9a-f]{64}$`)

// ParseHashes reads hashes of CAs; at least one.
func ParseHashes(texts []string) (hashes []string, err error) {
	var errs []error
	for _, t := range texts {
		t = strings.ToLower(strings.TrimSpace(t))
		if !hash().MatchString(t) {
			errs = append(errs, fmt.Errorf("--ca-hash %q: want sha256: and 64 hexadecimal digits", t))
		}
		hashes = append(hashes, t)
	}
	if len(texts) == 0 {
		errs = append(errs, advice.With(errors.New("--ca-hash is missing: without it anybody could pretend to be the cluster"), "kthwd node token create prints it"))
	}
	return hashes, errors.Join(errs...)
}
