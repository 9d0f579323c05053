package member

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net"
	"strings"
)

// Token is what a further controller needs to join: the addresses of join endpoints,
// the CA to trust, and a secret that is valid once and for a limited time.
type Token struct {
	ID        string            // ID of the pending join; not secret
	Secret    []byte            // 16 bytes
	CA        [sha256.Size]byte // SHA-256 of the CA's certificate, DER
	Addresses []string          // HOST:PORT of the join endpoints
}

const (
	tokenPrefix = "kthwd1." // the 1 is the version of the format
	idBytes     = 6
	secretBytes = 16
	sumBytes    = 4
)

// NewToken makes a token with a new ID and secret.
func NewToken(ca [sha256.Size]byte, addresses []string) (Token, error) {
	random := make([]byte, idBytes+secretBytes)
	if _, err := rand.Read(random); err != nil {
		return Token{}, err
	}
	return Token{ID: hex.EncodeToString(random[:idBytes]), Secret: random[idBytes:], CA: ca, Addresses: addresses}, nil
}

// Hash returns the hash that the cluster stores in place of the secret. The secret is
// random and long, so one round is enough.
func (t Token) Hash() []byte {
	sum := sha256.Sum256(append([]byte("kthwd join\x00"+t.ID+"\x00"), t.Secret...))
	return sum[:]
}

// String returns the token as it is typed. It contains the secret.
func (t Token) String() string {
	id, _ := hex.DecodeString(t.ID)
	body := bytes.Join([][]byte{id, t.Secret, t.CA[:], []byte(strings.Join(t.Addresses, ","))}, nil)
	sum := sha256.Sum256(body)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(body, sum[:sumBytes]...))
}

// ParseToken parses the output of String. For a truncated or mistyped token it returns
// a *Refusal. No error contains any of the token.
func ParseToken(s string) (Token, error) {
	damaged := &Refusal{Text: "the token is not a whole one", Advice: "copy all of the line that kthwd member add printed"}
	text, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok {
		return Token{}, &Refusal{Text: "this is no token: one begins with " + tokenPrefix, Advice: "kthwd member add NAME ADDRESS on a controller makes one"}
	}
	data, err := base64.RawURLEncoding.DecodeString(text)
	const fixed = idBytes + secretBytes + sha256.Size
	if err != nil || len(data) <= fixed+sumBytes {
		return Token{}, damaged
	}
	body, sum := data[:len(data)-sumBytes], sha256.Sum256(data[:len(data)-sumBytes])
	if !bytes.Equal(sum[:sumBytes], data[len(data)-sumBytes:]) {
		return Token{}, damaged
	}
	t := Token{ID: hex.EncodeToString(body[:idBytes]), Secret: body[idBytes : idBytes+secretBytes], Addresses: strings.Split(string(body[fixed:]), ",")}
	copy(t.CA[:], body[idBytes+secretBytes:])
	for _, a := range t.Addresses {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return Token{}, damaged
		}
	}
	return t, nil
}
