package encryption

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	kmsservice "k8s.io/kms/pkg/service"

	"kthwd/appliance/cause"
	"kthwd/test/harness"
)

// opensAll is a key server that returns what it gets.
type opensAll struct{ refusal error }

// Encrypt implements kmsservice.Service, as do the two below.
func (s opensAll) Encrypt(_ context.Context, _ string, data []byte) (*kmsservice.EncryptResponse, error) {
	return &kmsservice.EncryptResponse{Ciphertext: data, KeyID: "1"}, s.refusal
}

// Decrypt implements kmsservice.Service.
func (s opensAll) Decrypt(_ context.Context, _ string, r *kmsservice.DecryptRequest) ([]byte, error) {
	return r.Ciphertext, s.refusal
}

// Status implements kmsservice.Service.
func (s opensAll) Status(context.Context) (*kmsservice.StatusResponse, error) {
	return &kmsservice.StatusResponse{Version: "v2", Healthz: "ok", KeyID: "1"}, nil
}

// What upstream's own code says of a key server that does not answer, or refuses, is known as
// that. The words in which it is wrapped are those of a key that encryption-config.yaml lacks,
// and the command for that would do harm.
func TestCauseOfADeadKeyServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "kms.sock")
	dead, err := kmsv2.NewGRPCService(t.Context(), "unix://"+socket, "vault", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	stored, state := sealed(t, time.Hour)
	_, expired := sealed(t, -time.Hour)
	read := func(s kmsservice.Service) error {
		_, _, err := transformer(s, state).TransformFromStorage(t.Context(), stored, value.DefaultContext("/registry/secrets/shop/pw"))
		return err
	}
	harness.WaitFor(t, "a connection that was tried", time.Minute, func() error {
		if err := read(dead); !strings.Contains(fmt.Sprint(err), socket) {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	_, writing := transformer(dead, expired).TransformToStorage(t.Context(), []byte("x"), value.DefaultContext("x"))
	_, _, _, sealing := kmsv2.GenerateTransformer(t.Context(), "id", dead, true)
	for _, tt := range []struct {
		name, says, do string
		err            error
	}{
		{"away", "does not answer at " + socket, "ss -xlp src " + socket, read(dead)},
		{"refuses", "does not decrypt what it has encrypted (another key)", "read the log of the KMS plugin", read(opensAll{errors.New("another key")})},
		{"away, for minutes", "without it nothing is encrypted after ", "start the KMS plugin", writing},
		{"away, for a new key", "does not encrypt (rpc error: ", "start the KMS plugin", sealing},
	} {
		if tt.err == nil {
			t.Errorf("%s: got no error", tt.name)
			continue
		}
		for _, wrapped := range []string{
			tt.err.Error(),
			storage.NewInternalError(fmt.Errorf("unable to transform key %q: %w", "/registry/secrets/shop/pw", tt.err)).Error(),
			"StorageError: corrupt object, Code: 7, Key: /registry/secrets/shop/pw, ResourceVersion: 0, AdditionalErrorMsg: data from the storage is not transformable revision=0: " + tt.err.Error(),
		} {
			c, _ := cause.Of(wrapped, cause.Names{})
			if c.Kind != cause.KeyServer || !strings.Contains(c.Text, tt.says) || !strings.Contains(c.Do, tt.do) || strings.Contains(c.Public, "/") {
				t.Errorf("%s: %q: got %+v, want %q and %q", tt.name, wrapped, c, tt.says, tt.do)
			}
		}
	}
}

// sealed returns a value that is stored with a key server, and the state of its transformer.
func sealed(t *testing.T, life time.Duration) (stored []byte, s kmsv2.State) {
	t.Helper()
	inner, key, _, err := kmsv2.GenerateTransformer(t.Context(), "id", opensAll{}, true)
	if err != nil {
		t.Fatal(err)
	}
	cached := sha256.Sum256(key.EncryptedDEKSource)
	s = kmsv2.State{
		Transformer: inner, EncryptedObjectKeyID: key.KeyID, EncryptedObjectEncryptedDEKSource: key.EncryptedDEKSource,
		EncryptedObjectEncryptedDEKSourceType: key.EncryptedDEKSourceType, UID: "id", CacheKey: cached[:],
		ExpirationTimestamp: time.Now().Add(life), KMSProviderName: "vault",
	}
	if life > 0 {
		stored, err = transformer(opensAll{}, s).TransformToStorage(t.Context(), []byte("hunter2"), value.DefaultContext("/registry/secrets/shop/pw"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return stored, s
}

func transformer(server kmsservice.Service, s kmsv2.State) value.Transformer {
	return kmsv2.NewEnvelopeTransformer(server, "vault", func() (kmsv2.State, error) { return s, nil }, "id")
}
