package membership

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/pki"
)

// A join's record is trusted only with a controller's seal: an HMAC with a key that all
// controllers have and etcd does not. Without the seal, write access to etcd would be enough
// to receive the cluster's keys.

const sealPurpose = "join record"

// sealKey returns the key of this cluster's new seals.
func (m *Members) sealKey() ([]byte, error) { return pki.SharedSecret(m.layout, sealPurpose) }

// isSealed reports whether a seal is one of this cluster's: during a rotation of the key that
// they are derived from, two keys make them.
func (m *Members) isSealed(seal []byte, compute func(key []byte) []byte) (bool, error) {
	keys, err := pki.SharedSecrets(m.layout, sealPurpose)
	return slices.ContainsFunc(keys, func(s pki.Secret) bool { return hmac.Equal(seal, compute(s.Key)) }), err
}

// Reseal gives the joins in progress a seal of the key that makes new ones, before a rotation
// drops the one before.
func (m *Members) Reseal(ctx context.Context, client *clientv3.Client) error {
	key, err := m.sealKey()
	if err != nil {
		return err
	}
	all, _, err := readJoins(ctx, client)
	if err != nil {
		return err
	}
	for _, j := range all {
		sealed, err := m.isSealed(j.Seal, j.computeSeal)
		if err != nil {
			return err
		}
		if !sealed || hmac.Equal(j.Seal, j.computeSeal(key)) {
			continue
		}
		done, err := j.update(ctx, client, key)
		if err == nil && !done {
			err = errors.New("a controller is joining at this moment")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// computeSeal returns the seal for the record's content. It covers every field that decides
// which joiner receives which files. To cover a further field, change the version.
func (j join) computeSeal(key []byte) []byte {
	const version = 2
	content, _ := json.Marshal([]any{version, j.ID, j.Name, j.Address, j.From, j.Secret, j.CAKey, j.TTL, j.Lease, j.Made.Unix(), j.Holder, j.Joiner, j.PeerURL}) // plain values always encode
	mac := hmac.New(sha256.New, key)
	mac.Write(content)
	return mac.Sum(nil)
}

// joins returns the joins in progress. It leaves out records without a controller's
// seal, and deletes them if this member leads.
func (m *Members) joins(ctx context.Context, client *clientv3.Client, o ...clientv3.OpOption) ([]join, int64, error) {
	all, revision, err := readJoins(ctx, client, o...)
	if err != nil || len(all) == 0 {
		return nil, revision, err
	}
	var made []join
	for _, j := range all {
		sealed, err := m.isSealed(j.Seal, j.computeSeal)
		if err != nil {
			return nil, 0, err
		}
		if sealed {
			made = append(made, j)
			continue
		}
		if server := m.etcd.Running(); server == nil || server.Server.Leader() != server.Server.MemberID() {
			continue
		}
		m.log.Warn("deleted a record of a join without a controller's seal: an older kthwd wrote it, or something else can write to etcd",
			"record", joinKey(j.ID), "name", j.Name, "address", j.Address)
		if err := j.forget(ctx, client); err != nil {
			return nil, 0, err
		}
	}
	return made, revision, nil
}

// mayComeFrom reports whether the joiner may send requests from the address HOST:PORT. All
// loopback addresses count as one, because they belong to one machine.
func (j join) mayComeFrom(remote string) bool {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return false
	}
	from, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	want, err := netip.ParseAddr(j.source())
	if err != nil {
		return false
	}
	return from.Unmap().WithZone("") == want.Unmap() || from.IsLoopback() && want.IsLoopback()
}

// source returns the address from which the joiner must send its requests.
func (j join) source() string {
	if j.From != "" {
		return j.From
	}
	return j.Address
}
