package encryption

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/encryption/keyfile"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
)

// kind names the rotation. kube-apiserver's keys in etcd are below /registry.
var kind = stages.Kind{What: "the encryption key", Command: "kthwd encryption", Prefix: "/kthwd/encryption/"}

// Stage is a step of a rotation.
type Stage string

// The stages, in their order.
const (
	StageRead    Stage = "read"    // all controllers can read what the new key writes
	StageWrite   Stage = "write"   // all controllers write with the new key
	StageRewrite Stage = "rewrite" // values of the old key are written anew, and none is left
	StageDrop    Stage = "drop"    // all controllers forget the old key
	StageDone    Stage = "done"
)

var order = []Stage{StageRead, StageWrite, StageRewrite, StageDrop}

// Number counts the stages from 1.
func (s Stage) Number() int { return slices.Index(order, s) + 1 }

// Of is the number of stages.
const Of = 4

// State is a rotation, as etcd has it. It holds no key.
type State struct {
	ID    string           `json:"id"`
	By    string           `json:"by"` // the controller that acted last
	Began time.Time        `json:"began"`
	Since time.Time        `json:"since"` // of the stage
	Stage Stage            `json:"stage"`
	Back  bool             `json:"back,omitempty"` // the rotation is aborted: the new key is the one to drop
	Old   []string         `json:"old"`            // the keys that wrote before: "secretbox key1"
	New   keyfile.Provider `json:"new"`
	Files []string         `json:"files"` // hashes of the files that a controller may have; the last one is the stage's

	Seal []byte `json:"seal"`

	revision int64
}

// hash is that of the file of the stage.
func (s State) hash() string { return s.Files[len(s.Files)-1] }

// running reports whether a rotation is under way.
func (s State) running() bool { return s.ID != "" && s.Stage != StageDone }

// needsNew reports whether a controller must have the new key: others may write with it.
func (s State) needsNew() bool {
	return s.running() && (s.Stage == StageWrite || s.Stage == StageRewrite || s.Stage == StageDrop && !s.Back)
}

// String is the rotation for people.
func (s State) String() string {
	from, to := fmt.Sprint(s.Old), s.New.String()
	if len(s.Old) == 1 {
		from = s.Old[0]
	}
	if s.Back {
		return fmt.Sprintf("%s → %s (aborted)", to, from)
	}
	return fmt.Sprintf("%s → %s", from, to)
}

// sealPurpose separates the secret of these seals from others.
const sealPurpose = "encryption rotation"

// seal returns the HMAC over the state with a secret that all controllers have and etcd
// does not, so write access to etcd is not enough to have a key dropped.
func (s State) seal(l pki.Layout) ([]byte, error) {
	secret, err := pki.SharedSecret(l, sealPurpose)
	if err != nil {
		return nil, err
	}
	return s.sealWith(secret)
}

func (s State) sealWith(secret []byte) ([]byte, error) {
	const version = 1
	s.Seal = nil
	content, err := json.Marshal([]any{version, s})
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(content)
	return mac.Sum(nil), nil
}

// isSealed accepts a seal of each service-account key that this controller has: that key can be
// rotated, too.
func (s State) isSealed(l pki.Layout) (bool, error) {
	secrets, err := pki.SharedSecrets(l, sealPurpose)
	if err != nil {
		return false, err
	}
	for _, secret := range secrets {
		want, err := s.sealWith(secret.Key)
		if err != nil {
			return false, err
		}
		if hmac.Equal(want, s.Seal) {
			return true, nil
		}
	}
	return false, nil
}

// Reseal gives the state a seal of the service-account key that makes new ones, before a rotation
// of that key drops the one before.
func (r *Rotation) Reseal(ctx context.Context, client *clientv3.Client) error {
	s, err := readState(ctx, r.cfg.Layout, client)
	switch {
	case errors.Is(err, errNoSeal), err == nil && s.ID == "":
		return nil
	case err != nil:
		return err
	case s.running():
		return advice.With(errors.New("the encryption key is being rotated, too"), "let that end first: kthwd encryption status")
	}
	h, err := kind.Take(ctx, client, r.cfg.Name)
	if err != nil {
		return err
	}
	defer h.Release()
	return s.save(ctx, r.cfg.Layout, client, h)
}

// errNoSeal means that something else than a controller has written the state.
var errNoSeal = advice.With(errors.New("has no controller's seal: something else than kthwd can write to etcd"),
	"see what it says: etcdctl get "+kind.StateKey()+"; without it kthwd takes no rotation for under way")

// readState returns the zero value before the first rotation.
func readState(ctx context.Context, l pki.Layout, client *clientv3.Client, o ...clientv3.OpOption) (s State, err error) {
	if s.revision, err = kind.Fetch(ctx, client, &s, errNoSeal, o...); err != nil || s.revision == 0 {
		return State{}, err
	}
	sealed := false
	if len(s.Files) > 0 {
		sealed, err = s.isSealed(l)
	}
	if err == nil && !sealed {
		err = kind.Unsealed(errNoSeal)
	}
	if err != nil {
		return State{}, err
	}
	return s, nil
}

// save seals the state and writes it, unless it has changed or this controller may no longer act.
func (s *State) save(ctx context.Context, l pki.Layout, client *clientv3.Client, h *stages.Hold) (err error) {
	if s.Seal, err = s.seal(l); err != nil {
		return err
	}
	return h.Save(ctx, client, s, &s.revision)
}
