package fault

import (
	"os"
	"testing"

	"kthwd/test/kthwtest"
)

func TestMain(m *testing.M) {
	kthwtest.TakeTurns(kthwtest.Together)
	os.Exit(m.Run())
}

// endToEnd skips a test of three controllers that takes minutes, unless KTHWD_E2E is set.
// instead says which test of make test has a part of it.
func endToEnd(t *testing.T, instead string) {
	t.Helper()
	if os.Getenv("KTHWD_E2E") == "" {
		t.Skipf("KTHWD_E2E is not set: run make test-e2e (%s)", instead)
	}
}
