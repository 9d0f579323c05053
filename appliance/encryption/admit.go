package encryption

import (
	"context"
	"fmt"
	"os"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/encryption/keyfile"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
)

// Admit refuses a controller whose file lacks the new key of a rotation with which others may
// write: one that has joined with an older file, or was restored. Call it before an API server
// uses the file, on a controller that has others. It waits for a quorum. A state without a
// seal admits everyone.
func Admit(ctx context.Context, l pki.Layout, client *clientv3.Client, path string) error {
	if _, err := (State{}).seal(l); path == "" || err != nil { // then no state can be believed
		return nil
	}
	return stages.Admit(ctx, func() (State, error) { return readState(ctx, l, client) }, errNoSeal, func(s State) error { return s.admits(path) })
}

// admits says why a controller with this file cannot serve now; nil if it can.
func (s State) admits(path string) error {
	if !s.needsNew() {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil // which the API server reports
	}
	f, err := keyfile.Parse(data)
	if err != nil || slices.Contains(keyfile.Names(f.All()), s.New.String()) {
		return nil
	}
	return s.lacksNew(path, "start kthwd again")
}

// missedBy reports whether a controller that must have the new key has the file from before the
// rotation, or uses it: it was added since the stage before, or the file was put back.
func (s State) missedBy(c Controller) bool {
	return s.needsNew() && (!slices.Contains(c.Keys, s.New.String()) || c.InUse == s.Files[0])
}

// lacksNew is the error about a file without the new key.
func (s State) lacksNew(file, then string) error {
	return advice.With(fmt.Errorf("%s lacks %s, with which other controllers may write: the encryption key is being rotated", file, s.New),
		fmt.Sprintf("copy the file from a controller that kthwd encryption status shows with %s, and %s", s.New, then))
}
