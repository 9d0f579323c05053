package apiserver

import (
	"context"
	"errors"
	"sync"

	"gopkg.in/go-jose/go-jose.v2/jwt"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"kthwd/appliance/advice"
	"kthwd/appliance/tokenrotation"
)

// tokens gives the API server the keys of service account tokens as they are at each moment.
// Upstream reads their files at a start only (StaticPublicKeysGetter in
// kubernetes/pkg/controlplane/apiserver/config.go). It has a way for keys that change, with which
// an external signer is connected (kubernetes/pkg/controlplane/apiserver/options/options.go:
// completeServiceAccountOptions); tokens stands where that would.
type tokens struct {
	keys   *tokenrotation.Keys
	issuer string

	mu        sync.Mutex
	of        *tokenrotation.Set // that generator signs for
	generator serviceaccount.TokenGenerator
	listeners []serviceaccount.Listener
}

// liveTokens replaces the keys that upstream has read, unless something else signs.
func (a *Server) liveTokens(o apioptions.CompletedOptions) error {
	if a.tokenKeys == nil {
		return nil
	}
	accounts := o.Authentication.ServiceAccounts
	if o.ServiceAccountIssuer == nil || o.ServiceAccountSigningKeyFile == "" || len(accounts.KeyFiles) == 0 {
		a.tokenKeys.Fixed(advice.With(errors.New("its API server has no key file to sign tokens with"), "rotate the key where it is, such as in the external signer"))
		return nil
	}
	if err := a.tokenKeys.Load(); err != nil {
		return err
	}
	t := &tokens{keys: a.tokenKeys, issuer: accounts.Issuers[0]}
	o.ServiceAccountIssuer = t
	accounts.KeyFiles, accounts.ExternalPublicKeysGetter = nil, t // upstream accepts one of the two
	a.tokenKeys.Use(t.changed)
	return nil
}

// changed lets the documents at /openid/v1/jwks and /.well-known/openid-configuration follow.
func (t *tokens) changed() {
	t.mu.Lock()
	listeners := t.listeners
	t.mu.Unlock()
	for _, l := range listeners {
		l.Enqueue()
	}
}

// AddListener implements serviceaccount.PublicKeysGetter.
func (t *tokens) AddListener(l serviceaccount.Listener) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.listeners = append(t.listeners[:len(t.listeners):len(t.listeners)], l)
}

// GetCacheAgeMaxSeconds implements serviceaccount.PublicKeysGetter: it is that of upstream's own
// files, and the default of kthwd pki service-account rotate --wait follows from it.
func (t *tokens) GetCacheAgeMaxSeconds() int { return int(tokenrotation.Cached.Seconds()) }

// GetPublicKeys implements serviceaccount.PublicKeysGetter.
func (t *tokens) GetPublicKeys(_ context.Context, id string) (keys []serviceaccount.PublicKey) {
	for _, k := range t.keys.Current().Accepted {
		if id == "" || k.ID == id {
			keys = append(keys, serviceaccount.PublicKey{KeyID: k.ID, PublicKey: k.Key})
		}
	}
	return keys
}

// GenerateToken implements serviceaccount.TokenGenerator.
func (t *tokens) GenerateToken(ctx context.Context, claims *jwt.Claims, private any) (string, error) {
	generator, err := t.signer()
	if err != nil {
		return "", err
	}
	return generator.GenerateToken(ctx, claims, private)
}

// signer signs with the key of this moment.
func (t *tokens) signer() (serviceaccount.TokenGenerator, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.keys.Current()
	if t.of == now {
		return t.generator, nil
	}
	generator, err := serviceaccount.JWTTokenGenerator(t.issuer, now.Signer)
	if err != nil {
		return nil, err
	}
	t.of, t.generator = now, generator
	return generator, nil
}
