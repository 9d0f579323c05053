package tokenrotation

import (
	"crypto"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/util/keyutil"

	"kthwd/appliance/pki"
)

// Cached is how long those who verify tokens elsewhere may keep what /openid/v1/jwks says: upstream's
// value (kubernetes/pkg/serviceaccount/jwt.go). A key must be published as long before it signs.
const Cached = time.Hour

// KeysConfig names the files of the API server's keys.
type KeysConfig struct {
	Accepted []string // --service-account-key-file
	Signing  string   // --service-account-signing-key-file

	// Loaded is called when the API server uses other keys than before; nil for nobody.
	Loaded func()
}

// PublicKey is a key of tokens that are accepted.
type PublicKey struct {
	ID  string
	Key crypto.PublicKey
}

// Set is the keys of one moment. It does not change.
type Set struct {
	Accepted []PublicKey
	Signer   any // *rsa.PrivateKey or *ecdsa.PrivateKey
	SignerID string
}

// IDs are those of the keys whose tokens are accepted.
func (s *Set) IDs() (ids []string) {
	for _, k := range s.Accepted {
		ids = append(ids, k.ID)
	}
	return ids
}

// Keys are the keys of tokens that the API server uses. Make one with NewKeys. Its methods may be
// called from any goroutine.
type Keys struct {
	cfg KeysConfig

	mu        sync.Mutex
	current   *Set // nil before the first Load
	used      bool // by the API server
	fixed     error
	listeners []func()
}

// NewKeys makes Keys. It does no I/O.
func NewKeys(c KeysConfig) *Keys { return &Keys{cfg: c} }

// Current is what Load has read last; nil before that.
func (k *Keys) Current() *Set {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current
}

// Use makes known that the API server asks for Current at each token. changed is called after
// each Load that has found other keys.
func (k *Keys) Use(changed func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.used, k.fixed = true, nil
	k.listeners = append(k.listeners, changed)
}

// Fixed makes known that the API server does not use Current, and why.
func (k *Keys) Fixed(why error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fixed = why
}

// InUse returns the keys of the API server, or why it cannot change them.
func (k *Keys) InUse() (*Set, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.fixed != nil:
		return nil, k.fixed
	case k.current == nil || !k.used:
		return nil, errors.New("its API server does not run")
	}
	return k.current, nil
}

// Load reads the files. If they do not fit, the keys in use stay.
func (k *Keys) Load() error {
	next := &Set{}
	for _, file := range k.cfg.Accepted {
		keys, err := keyutil.PublicKeysFromFile(file)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, key := range keys {
			id, err := pki.TokenKeyID(key)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if !slices.Contains(next.IDs(), id) {
				next.Accepted = append(next.Accepted, PublicKey{id, key})
			}
		}
	}
	signer, err := keyutil.PrivateKeyFromFile(k.cfg.Signing)
	if err != nil {
		return fmt.Errorf("%s: %w", k.cfg.Signing, err)
	}
	private, ok := signer.(crypto.Signer)
	if !ok {
		return fmt.Errorf("%s: a key that cannot sign", k.cfg.Signing)
	}
	next.Signer = signer
	if next.SignerID, err = pki.TokenKeyID(private.Public()); err != nil {
		return fmt.Errorf("%s: %w", k.cfg.Signing, err)
	}
	k.mu.Lock()
	before := k.current
	k.current = next
	listeners := slices.Clone(k.listeners)
	k.mu.Unlock()
	if before != nil && (before.SignerID != next.SignerID || !slices.Equal(before.IDs(), next.IDs())) {
		for _, changed := range listeners {
			changed()
		}
		if k.cfg.Loaded != nil {
			k.cfg.Loaded()
		}
	}
	return nil
}
