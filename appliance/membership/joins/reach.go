package joins

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
)

// DialKey is the key of the request to dial a joiner.
func DialKey(id string) string { return Prefix + id + "/dial" }

// ReachKey is the prefix of what the others found, by the ID of their member.
func ReachKey(id string) string { return Prefix + id + "/reach/" }

// DialRequest asks the controllers to dial the joiner of a join.
type DialRequest struct {
	Nonce    string `json:"nonce"`
	PeerPort int    `json:"peerPort"`
	Joiner   []byte `json:"joiner"` // hash of the joiner's name
	Seal     []byte `json:"seal"`   // see seal.go
}

// Reached is what a controller found.
type Reached struct {
	Nonce string `json:"nonce"`
	Name  string `json:"name"`
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
}

// ComputeSeal returns the seal of a request about the join id.
func (r DialRequest) ComputeSeal(key []byte, id string) []byte {
	content, _ := json.Marshal([]any{"dial", 1, id, r.Nonce, r.PeerPort, r.Joiner})
	mac := hmac.New(sha256.New, key)
	mac.Write(content)
	return mac.Sum(nil)
}

// JoinerHash is the hash of a joiner's name.
func JoinerHash(joiner string) []byte {
	sum := sha256.Sum256([]byte(joiner))
	return sum[:]
}
