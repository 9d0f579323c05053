package joins

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"net"
	"net/netip"
)

// SealPurpose separates the secret of these seals from others.
const SealPurpose = "join record"

// ComputeSeal returns the seal for the record's content. It covers every field that decides
// which joiner receives which files. To cover a further field, change the version.
func (j Join) ComputeSeal(key []byte) []byte {
	const version = 2
	content, _ := json.Marshal([]any{version, j.ID, j.Name, j.Address, j.From, j.Secret, j.CAKey, j.TTL, j.Lease, j.Made.Unix(), j.Holder, j.Joiner, j.PeerURL}) // plain values always encode
	mac := hmac.New(sha256.New, key)
	mac.Write(content)
	return mac.Sum(nil)
}

// MayComeFrom reports whether the joiner may send requests from the address HOST:PORT. All
// loopback addresses count as one, because they belong to one machine.
func (j Join) MayComeFrom(remote string) bool {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return false
	}
	from, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	want, err := netip.ParseAddr(j.Source())
	if err != nil {
		return false
	}
	return from.Unmap().WithZone("") == want.Unmap() || from.IsLoopback() && want.IsLoopback()
}

// Source returns the address from which the joiner must send its requests.
func (j Join) Source() string {
	if j.From != "" {
		return j.From
	}
	return j.Address
}
