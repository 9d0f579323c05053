package kthwtest

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Callers that each have their own descriptor, as test binaries do, never get the same
// port, or one in use.
func TestTakePorts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ports")
	used := func(port int) bool { return port%3 == 0 }
	var mu sync.Mutex
	seen := map[int]bool{}
	var callers sync.WaitGroup
	for range 50 {
		callers.Go(func() {
			found, err := takePorts(file, 8, func(port int) bool { return !used(port) })
			if err != nil || len(found) != 8 {
				t.Errorf("got %v, %v, want 8 ports", found, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, port := range found {
				if seen[port] || used(port) || port < firstPort || port > lastPort {
					t.Errorf("%d: given before %v, in use %v", port, seen[port], used(port))
				}
				seen[port] = true
			}
		})
	}
	callers.Wait()
}

func TestTakePortsFromAnyFile(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "not a number": "x", "the last one": "32000\n", "beyond": "99999\n"} {
		file := filepath.Join(t.TempDir(), "ports")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		found, err := takePorts(file, 2, func(int) bool { return true })
		if err != nil || found[0] != firstPort || found[1] != firstPort+1 {
			t.Errorf("%s: got %v, %v, want the first ports", name, found, err)
		}
	}
	if found, err := takePorts(filepath.Join(t.TempDir(), "ports"), 1, func(int) bool { return false }); err == nil {
		t.Errorf("no port is free: got %v, want an error", found)
	}
}
