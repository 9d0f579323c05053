package gate

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/server/options/encryptionconfig"

	"kthwd/appliance/encryption/keyfile"
	"kthwd/test/harness"
)

// edited is the content of the file; nothing parses it.
const edited = "kind: EncryptionConfiguration\n"

// A look at an edited file waits for a rotation that is about to use it.
func TestEditedByARotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "encryption-config.yaml")
	if err := os.WriteFile(path, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	g := New(Config{File: path, Log: slog.New(slog.DiscardHandler)})
	g.Serve(t.Context(), &encryptionconfig.DynamicTransformers{}, "sha256:old", "id")
	g.loading.Lock()
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		g.edited(t.Context())
	}()
	harness.WaitFor(t, "the look to wait", time.Minute, func() error {
		stacks := make([]byte, 1<<20)
		if !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "(*Gate).edited") {
			return errors.New("not yet")
		}
		return nil
	})
	g.mu.Lock()
	g.hash = keyfile.Hash([]byte(edited))
	g.mu.Unlock()
	g.loading.Unlock()
	<-looked
	if f := g.Findings(); len(f) > 0 {
		t.Errorf("got %+v", f)
	}
}
