package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestTasks reads the limits of both versions, and leaves out groups without one.
func TestTasks(t *testing.T) {
	top := t.TempDir()
	for file, text := range map[string]string{
		"a/b/pids.max": "40\n", "a/b/pids.current": "12\n", "a/pids.max": "max\n", "pids/v/pids.max": "7\n", "pids/v/pids.current": "9\n",
	} {
		path := filepath.Join(top, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string][2]uint64{}
	for _, g := range TasksIn(top, "4:pids:/v\n3:memory:/x\n0::/a/b\n") {
		if most, used, ok := g.Limit(); ok {
			got[g.Name] = [2]uint64{most, used}
		}
	}
	if len(got) != 2 || got["/a/b"] != [2]uint64{40, 12} || got["/v"] != [2]uint64{7, 9} {
		t.Errorf("got %v", got)
	}
}

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
