package tune

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	root, container := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(container, "memory.max"), []byte("1024\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, groups := range []string{"0::/\n", "0::/init.scope\n"} {
		if got := memoryLimit(container, groups); got != 1024 {
			t.Errorf("a container that sees its own group as /, %q: got %d, want 1024", groups, got)
		}
	}
	for file, text := range map[string]string{
		"a.slice/memory.max":                   "4096\n",
		"a.slice/b.service/memory.max":         "max\n",
		"a.slice/b.service/memory.high":        "8192\n",
		"c.slice/memory.max":                   "max\n",
		"memory/a.slice/memory.limit_in_bytes": "2048\n",
		"memory/c.slice/memory.limit_in_bytes": "9223372036854771712\n",
	} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for groups, want := range map[string]uint64{
		"0::/a.slice/b.service\n":               4096,
		"3:cpu:/x\n0::/a.slice\n":               4096,
		"0::/c.slice\n":                         math.MaxUint64,
		"0::/\n":                                math.MaxUint64,
		"":                                      math.MaxUint64,
		"4:memory:/a.slice/b\n0::/a.slice\n":    2048,
		"4:memory:/c.slice\n":                   9223372036854771712,
		"4:cpu,cpuacct:/a.slice\n":              math.MaxUint64,
		"0::/a.slice/b.service/not-there-yet\n": 4096,
	} {
		if got := memoryLimit(root, groups); got != want {
			t.Errorf("%q: got %d, want %d", groups, got, want)
		}
	}
}

// TestSoftLimit holds what GOMEMLIMIT would be set to.
func TestSoftLimit(t *testing.T) {
	for limit, want := range map[uint64]int64{
		1 << 30:             (1 << 30) / 10 * 9,
		math.MaxUint64:      math.MaxInt64, // there is no group
		9223372036854771712: math.MaxInt64, // version 1 without a limit
	} {
		if got := softLimit(limit); got != want {
			t.Errorf("%d: got %d, want %d", limit, got, want)
		}
	}
}
