package encryption

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/encryption/keyfile"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
)

// Admit refuses a controller whose file lacks the new key of a rotation with which others may
// write, or would write with a key that a rotation has dropped: one that has joined with an older file,
// or was restored. Call it before an API server
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
	if !s.needsNew() && s.Stage != StageDone {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil // which the API server reports
	}
	f, err := keyfile.Parse(data)
	switch {
	case err != nil:
		return nil
	case s.Stage == StageDone:
		return s.writesDropped(path, f)
	case slices.Contains(keyfile.Names(f.All()), s.New.String()):
		return nil
	}
	return s.lacksNew(path, "start kthwd again")
}

// writesDropped is the error about a file that writes with a key which no other controller has any more;
// nil if it does not. To read with such a key is no harm: what it has written may have come back.
func (s State) writesDropped(path string, f *keyfile.File) error {
	dropped, left := s.Old, s.New.String()
	if s.Back {
		dropped, left = []string{s.New.String()}, strings.Join(s.Old, ", ")
	}
	for _, name := range keyfile.Names(f.Writers()) {
		if slices.Contains(dropped, name) {
			return advice.With(fmt.Errorf("%s writes with %s, which a rotation of the encryption key has dropped on the other controllers: they could not read it", path, name),
				fmt.Sprintf("copy the file from a controller that kthwd encryption status shows with %s, and start kthwd again", left))
		}
	}
	return nil
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
