package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
)

// A pair is a certificate and its key, as far as they exist.
type pair struct {
	chain  []*x509.Certificate // the leaf first; nil without a readable certificate
	public []crypto.PublicKey  // public keys of all blocks in the certificate's file
	key    crypto.Signer       // nil without a readable key

	hasCert, hasKey bool   // the file exists, whatever it contains
	staged          []byte // the CA certificate that an interrupted Ensure has not linked
}

// parseCertificates reads the certificates of a PEM file, and the public keys of the
// certificates and of PUBLIC KEY blocks: a service-account.pem may consist of the
// latter. It ignores other blocks. Without an error it returns a public key at least.
func parseCertificates(data []byte) ([]*x509.Certificate, []crypto.PublicKey, error) {
	var chain []*x509.Certificate
	var public []crypto.PublicKey
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("certificate %d in it: %w", len(chain)+1, err)
			}
			chain, public = append(chain, c), append(public, c.PublicKey)
		case "PUBLIC KEY":
			key, err := x509.ParsePKIXPublicKey(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("public key in it: %w", err)
			}
			public = append(public, key)
		}
	}
	if len(public) == 0 {
		return nil, nil, errors.New("holds no PEM certificate")
	}
	return chain, public, nil
}

// parseKey reads the first private key of a PEM file: SEC1 and PKCS#1, as cfssl and
// older openssl write them, or PKCS#8. Its errors quote nothing of the file.
func parseKey(data []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue // such as EC PARAMETERS, which openssl puts first
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return nil, errors.New("the key is encrypted with a passphrase")
		}
		return parseKeyBlock(block)
	}
	return nil, errors.New("holds no PEM private key")
}

func parseKeyBlock(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("the %s in it is broken", block.Type)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the %s in it cannot sign", block.Type)
	}
	return signer, nil
}

// checkPEM refuses what Go's reader of PEM passes over without a word: upstream's programs
// would run with fewer certificates than the file seems to hold.
func checkPEM(data []byte) error {
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		return errors.New("begins with a byte order mark, which hides the first block in it")
	}
	blocks := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		if block.Type == "CERTIFICATE" && len(block.Headers) > 0 {
			return fmt.Errorf("block %d in it is a certificate with headers, which crypto/x509 passes over", blocks)
		}
	}
	if begun := bytes.Count(data, []byte("-----BEGIN ")); begun > blocks {
		return fmt.Errorf("only %d of the %d PEM blocks in it can be read", blocks, begun)
	}
	return nil
}

// foreignBlock returns the type of the first block that is no certificate, or "".
func foreignBlock(data []byte) string {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return block.Type
		}
	}
	return ""
}

// HoldsPrivateKey reports whether a PEM file has a private key in it, whatever else it
// holds.
func HoldsPrivateKey(data []byte) bool {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return true
		}
	}
	return bytes.Contains(data, []byte("PRIVATE KEY-----"))
}

// Pool reads the certificates of a PEM file into a pool, to verify peers against.
func Pool(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s: no certificate in it", path)
	}
	return pool, nil
}

func encodeCertificates(chain []*x509.Certificate) []byte {
	var out []byte
	for _, c := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// encodeKey writes SEC1 and PKCS#1, which every Kubernetes since 1.0 reads, and PKCS#8
// for a key that has neither form.
func encodeKey(key crypto.Signer) ([]byte, error) {
	block := &pem.Block{Type: "PRIVATE KEY"}
	var err error
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		block.Type = "EC PRIVATE KEY"
		block.Bytes, err = x509.MarshalECPrivateKey(k)
	case *rsa.PrivateKey:
		block.Type = "RSA PRIVATE KEY"
		block.Bytes = x509.MarshalPKCS1PrivateKey(k)
	default:
		block.Bytes, err = x509.MarshalPKCS8PrivateKey(k)
	}
	return pem.EncodeToMemory(block), err
}

// fits reports whether key is the private half of public.
func fits(key crypto.Signer, public crypto.PublicKey) bool {
	own, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && own.Equal(public)
}

// keyType names the algorithm of a key for people.
func keyType(public crypto.PublicKey) string {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return fmt.Sprintf("%T", public)
}
