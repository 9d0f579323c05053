package encryption

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/appliance/advice"
	"kthwd/appliance/encryption/gate"
	"kthwd/appliance/encryption/keyfile"
)

// A controller whose file lacks the new key is refused while others may write with that: one
// that has joined with an older file, or was restored.
func TestAdmit(t *testing.T) {
	client, l := startEtcd(t, false), layout(t)
	p, read, write, alone := forms(t)
	h, err := kind.Take(t.Context(), client, "c0")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"old": written, "read": string(read), "write": string(write), "alone": string(alone), "none": ""}
	for name, content := range files {
		if content == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(l.Dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	revision := int64(0)
	for _, tt := range []struct {
		stage   Stage
		back    bool
		refuses string // names of files
	}{
		{"", false, ""}, {StageRead, false, ""}, {StageWrite, false, "old"}, {StageRewrite, false, "old"}, {StageDrop, false, "old"}, {StageDone, false, "old read"},
		{StageWrite, true, "old"}, {StageRewrite, true, "old"}, {StageDrop, true, ""}, {StageDone, true, "write alone"},
	} {
		if tt.stage != "" {
			s := State{ID: "a", Stage: tt.stage, Back: tt.back, New: p, Old: []string{"secretbox key1"}, Files: []string{"x"}, revision: revision}
			if err := s.save(t.Context(), l, client, h); err != nil {
				t.Fatal(err)
			}
			revision = s.revision
		}
		for name := range files {
			err := Admit(t.Context(), l, client, filepath.Join(l.Dir, name))
			refused, says := slices.Contains(strings.Fields(tt.refuses), name), "lacks secretbox key2"
			switch {
			case tt.stage == StageDone && tt.back:
				says = "writes with secretbox key2"
			case tt.stage == StageDone:
				says = "writes with secretbox key1"
			}
			switch hint, _ := advice.Of(err); {
			case refused != (err != nil):
				t.Errorf("stage %q, back %v, file %s: got %v", tt.stage, tt.back, name, err)
			case err != nil && (!strings.Contains(err.Error(), says) || !strings.Contains(hint, "copy the file")):
				t.Errorf("got %v, hint %q", err, hint)
			}
		}
	}
	if _, err := client.Put(t.Context(), kind.StateKey(), `{"id":"a","stage":"write","files":["x"]}`); err != nil {
		t.Fatal(err)
	}
	if err := Admit(t.Context(), l, client, filepath.Join(l.Dir, "old")); err != nil {
		t.Errorf("a state without a seal: got %v", err)
	}
}

func TestMissedBy(t *testing.T) {
	s := State{ID: "a", Stage: StageWrite, New: keyfile.Provider{Kind: "secretbox", Name: "key2"}, Files: []string{"old", "read", "write"}}
	both := []string{"secretbox key1", "secretbox key2"}
	for name, tt := range map[string]struct {
		is   Controller
		want bool
	}{
		"the stage before":       {Controller{File: "read", InUse: "read", Keys: both}, false},
		"half of this stage":     {Controller{File: "write", InUse: "read", Keys: both}, false},
		"the old file":           {Controller{File: "old", InUse: "old", Keys: both[:1]}, true},
		"the old file is in use": {Controller{File: "read", InUse: "old", Keys: both}, true},
	} {
		if got := s.missedBy(tt.is); got != tt.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

// Whoever has the stage's file beside the edited one need not look for it elsewhere.
func TestEditedHint(t *testing.T) {
	r := New(Config{Name: "c0", Gate: gate.New(gate.Config{File: filepath.Join(t.TempDir(), "e.yaml")})})
	for _, kept := range []bool{false, true} {
		if kept {
			if err := os.WriteFile(r.next(), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"c0", "c1"} {
			if hint, _ := advice.Of(r.edited(name)); strings.Contains(hint, "e.yaml.next") != (kept && name == "c0") {
				t.Errorf("%s, kept %v: got %q", name, kept, hint)
			}
		}
	}
}
