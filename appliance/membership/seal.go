package membership

import (
	"context"
	"crypto/hmac"
	"errors"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/membership/joins"
	"kthwd/appliance/pki"
)

// sealKey returns the key of this cluster's new seals.
func (m *Members) sealKey() ([]byte, error) { return pki.SharedSecret(m.layout, joins.SealPurpose) }

// isSealed reports whether a seal is one of this cluster's: during a rotation of the key that
// they are derived from, two keys make them.
func (m *Members) isSealed(seal []byte, compute func(key []byte) []byte) (bool, error) {
	keys, err := pki.SharedSecrets(m.layout, joins.SealPurpose)
	return slices.ContainsFunc(keys, func(s pki.Secret) bool { return hmac.Equal(seal, compute(s.Key)) }), err
}

// Reseal gives the joins in progress a seal of the key that makes new ones, before a rotation
// drops the one before.
func (m *Members) Reseal(ctx context.Context, client *clientv3.Client) error {
	key, err := m.sealKey()
	if err != nil {
		return err
	}
	all, _, err := joins.Read(ctx, client)
	if err != nil {
		return err
	}
	for _, j := range all {
		sealed, err := m.isSealed(j.Seal, j.ComputeSeal)
		if err != nil {
			return err
		}
		if !sealed || hmac.Equal(j.Seal, j.ComputeSeal(key)) {
			continue
		}
		done, err := j.Update(ctx, client, key)
		if err == nil && !done {
			err = errors.New("a controller is joining at this moment")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// joins returns the joins in progress. It leaves out records without a controller's
// seal, and deletes them if this member leads.
func (m *Members) joins(ctx context.Context, client *clientv3.Client, o ...clientv3.OpOption) ([]joins.Join, int64, error) {
	all, revision, err := joins.Read(ctx, client, o...)
	if err != nil || len(all) == 0 {
		return nil, revision, err
	}
	var made []joins.Join
	for _, j := range all {
		sealed, err := m.isSealed(j.Seal, j.ComputeSeal)
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
			"record", joins.Key(j.ID), "name", j.Name, "address", j.Address)
		if err := j.Forget(ctx, client); err != nil {
			return nil, 0, err
		}
	}
	return made, revision, nil
}
