package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

// TestKills reads the counters of both versions.
func TestKills(t *testing.T) {
	top := t.TempDir()
	for file, text := range map[string]string{
		"a/b/memory.events":           "low 0\noom 3\noom_kill 2\n",
		"a/memory.events":             "oom_kill 5\n",
		"memory/v/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
	} {
		path := filepath.Join(top, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]uint64{}
	for _, m := range In(top, "4:memory:/v\n3:cpu:/x\n0::/a/b\n") {
		if n, ok := m.Kills(); ok {
			got[m.Name] = n
		}
	}
	if len(got) != 3 || got["/a/b"] != 2 || got["/a"] != 5 || got["/v"] != 1 {
		t.Errorf("got %v", got)
	}
}
