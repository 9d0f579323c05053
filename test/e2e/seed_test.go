package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// TestSeed runs rbacseed's own cases against the API server in kthwd, which
// make test runs against a stand-in only.
func TestSeed(t *testing.T) {
	requireE2E(t)
	c := kthwtest.Start(t, kthwtest.Options{})
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-v", "-timeout=5m", "-run=^TestAgainstAPIServer$", "./rbacseed")
	cmd.Dir = kthwtest.Root()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -buildvcs=false", "KTHWD_TEST_KUBECONFIG="+absolute(t, c.Kubeconfig("admin")))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go test ./rbacseed: %v\n%s", err, out)
	}
	wantAll(t, string(out), "--- PASS: TestAgainstAPIServer ", "--- PASS: TestAgainstAPIServer/component")
	if strings.Contains(string(out), "--- SKIP") {
		t.Errorf("skipped:\n%s", out)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}
