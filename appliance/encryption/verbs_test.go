package encryption

import (
	"log/slog"
	"os"
	"testing"
)

// The file that a controller keeps goes when another one has ended the rotation, and not
// before: the new key may be nowhere else.
func TestTidy(t *testing.T) {
	client, l := startEtcd(t, false), layout(t)
	r := New(Config{Layout: l, Gate: NewGate(GateConfig{File: l.EncryptionConfig()}), Log: slog.New(slog.DiscardHandler)})
	h, err := take(t.Context(), client, "c0")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.next(), []byte(written), 0o600); err != nil {
		t.Fatal(err)
	}
	s := State{ID: "a", Stage: StageRead, Files: []string{"x"}}
	for _, tt := range []struct {
		stage        Stage
		acting, gone bool
	}{{StageRead, false, false}, {StageDone, true, false}, {StageDone, false, true}} {
		s.Stage, r.acting = tt.stage, tt.acting
		if err := h.save(t.Context(), l, client, &s); err != nil {
			t.Fatal(err)
		}
		kept, err := os.Lstat(r.next())
		if err != nil {
			t.Fatal(err)
		}
		r.tidy(t.Context(), client, kept)
		if _, err := os.Lstat(r.next()); os.IsNotExist(err) != tt.gone {
			t.Errorf("%+v: got %v", tt, err)
		}
	}
}
