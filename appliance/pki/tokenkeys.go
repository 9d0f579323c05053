package pki

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"kthwd/appliance/durable"
)

// TokenFiles are the contents of service-account.pem and its key. Each may hold several keys:
// tokens of every public one are accepted, and the first private one signs. Keys are told
// apart by their IDs, which tokens have in their header. The methods that return other files
// leave what they do not speak of as it is, to the byte.
type TokenFiles struct {
	Public []byte
	Key    []byte
}

// ReadTokenFiles reads the files of a directory.
func ReadTokenFiles(l Layout) (f TokenFiles, err error) {
	if f.Public, _, err = read(l.Cert(NameServiceAccount)); err != nil {
		return f, fmt.Errorf("%s: %w", l.Cert(NameServiceAccount), err)
	}
	if f.Key, _, err = read(l.Key(NameServiceAccount)); err != nil {
		return f, fmt.Errorf("%s: %w", l.Key(NameServiceAccount), err)
	}
	return f, nil
}

// NewTokenKey makes a private key for tokens, as PEM, and its ID.
func NewTokenKey() (data []byte, id string, err error) {
	key, err := newKey()
	if err != nil {
		return nil, "", err
	}
	if id, err = TokenKeyID(key.Public()); err != nil {
		return nil, "", err
	}
	data, err = encodeKey(key)
	return data, id, err
}

// TokenKeyID is the ID of a key in the header of the tokens that it has signed
// (kubernetes/pkg/serviceaccount/jwt.go:keyIDFromPublicKey).
func TokenKeyID(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// tokenPart is a piece of a PEM file that ends with a key; id is empty for what follows the last one.
type tokenPart struct {
	id   string
	text []byte
}

// Accepted returns the IDs of the public keys, and Signing those of the private ones.
func (f TokenFiles) Accepted() []string { return idsOf(tokenParts(f.Public, publicID)) }

// Signing returns the IDs of the private keys; the first one signs.
func (f TokenFiles) Signing() []string { return idsOf(tokenParts(f.Key, privateID)) }

// PrivateKey returns the private key with an ID; nil if it is not there.
func (f TokenFiles) PrivateKey(id string) []byte {
	for _, p := range tokenParts(f.Key, privateID) {
		if p.id == id {
			return p.text
		}
	}
	return nil
}

// With returns the files with one more key, which does not sign yet.
func (f TokenFiles) With(key []byte) (TokenFiles, error) {
	signer, err := parseKey(key)
	if err != nil {
		return f, err
	}
	id, err := TokenKeyID(signer.Public())
	if err != nil {
		return f, err
	}
	if !slices.Contains(f.Accepted(), id) {
		der, err := x509.MarshalPKIXPublicKey(signer.Public())
		if err != nil {
			return f, err
		}
		f.Public = slices.Concat(ended(f.Public), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	if !slices.Contains(f.Signing(), id) {
		f.Key = slices.Concat(ended(f.Key), ended(key))
	}
	return f, nil
}

// SignedBy returns the files with the key of this ID as the one that signs. The key must be there.
func (f TokenFiles) SignedBy(id string) TokenFiles {
	first, rest := []byte(nil), []byte(nil)
	for _, p := range tokenParts(f.Key, privateID) {
		if p.id == id && first == nil {
			first = ended(p.text)
			continue
		}
		rest = append(rest, p.text...)
	}
	f.Key = slices.Concat(first, rest)
	return f
}

// Without returns the files without the key of this ID.
func (f TokenFiles) Without(id string) TokenFiles {
	drop := func(data []byte, of func(*pem.Block) string) (kept []byte) {
		for _, p := range tokenParts(data, of) {
			if p.id != id {
				kept = append(kept, p.text...)
			}
		}
		return kept
	}
	return TokenFiles{Public: drop(f.Public, publicID), Key: drop(f.Key, privateID)}
}

// Write puts the files in the place of those of a directory, so that at each moment, also in a
// crash, the key that signs is among those that are accepted: as long as they have one in common
// with those before.
func (f TokenFiles) Write(l Layout) error {
	held, err := lock(l.Dir, syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer held.Close()
	is, err := ReadTokenFiles(l)
	if err != nil {
		return err
	}
	signs := f.Signing()
	if len(signs) == 0 || !slices.Contains(f.Accepted(), signs[0]) {
		return fmt.Errorf("%s: without the key that signs", l.Cert(NameServiceAccount))
	}
	public := func() error { return replaceIfOther(l.Cert(NameServiceAccount), is.Public, f.Public) }
	key := func() error { return replaceIfOther(l.Key(NameServiceAccount), is.Key, f.Key) }
	if keyFirst(is, f) {
		public, key = key, public
	}
	if err := public(); err != nil {
		return err
	}
	return key()
}

// TokenFilesReplaceable tries to write beside the files of a directory.
func TokenFilesReplaceable(l Layout) error {
	for _, path := range []string{l.Cert(NameServiceAccount), l.Key(NameServiceAccount)} {
		if err := durable.Replaceable(path); err != nil {
			return fmt.Errorf("%s cannot be replaced: %w", path, err)
		}
	}
	return nil
}

// keyFirst reports whether the private key is written before the public ones.
func keyFirst(is, next TokenFiles) bool { return slices.Contains(is.Accepted(), next.Signing()[0]) }

func replaceIfOther(path string, is, data []byte) error {
	if bytes.Equal(is, data) {
		return nil
	}
	return durable.Replace(path, data)
}

// tokenParts cuts a file after each key.
func tokenParts(data []byte, id func(*pem.Block) string) (all []tokenPart) {
	from := data
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if id := id(block); id != "" {
			all = append(all, tokenPart{id, from[:len(from)-len(rest)]})
			from = rest
		}
	}
	if len(from) > 0 {
		all = append(all, tokenPart{"", from})
	}
	return all
}

func idsOf(all []tokenPart) (ids []string) {
	for _, p := range all {
		if p.id != "" {
			ids = append(ids, p.id)
		}
	}
	return ids
}

func publicID(block *pem.Block) (id string) {
	switch block.Type {
	case "CERTIFICATE":
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			id, _ = TokenKeyID(c.PublicKey)
		}
	case "PUBLIC KEY":
		if k, err := x509.ParsePKIXPublicKey(block.Bytes); err == nil {
			id, _ = TokenKeyID(k)
		}
	case "RSA PUBLIC KEY":
		if k, err := x509.ParsePKCS1PublicKey(block.Bytes); err == nil {
			id, _ = TokenKeyID(k)
		}
	}
	return id
}

func privateID(block *pem.Block) (id string) {
	if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
		return ""
	}
	if k, err := parseKeyBlock(block); err == nil {
		id, _ = TokenKeyID(k.Public())
	}
	return id
}

// ended returns text that ends with the end of a line.
func ended(text []byte) []byte {
	if len(text) > 0 && text[len(text)-1] != '\n' {
		return append(slices.Clone(text), '\n')
	}
	return text
}
