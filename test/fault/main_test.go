package fault

import (
	"os"
	"testing"

	"kthwd/test/kthwtest"
)

func TestMain(m *testing.M) {
	kthwtest.TakeTurns(kthwtest.Together)
	os.Exit(common.Run(m))
}

// common is for the tests of verbs and of starts that are refused beside a controller.
var common = kthwtest.Shared{Tests: 4}

// use is kthwtest.Turn, and returns the controller that tests share. They have their turns one after
// the other, so that it does not run for as long as all tests.
func use(t *testing.T) *kthwtest.Controller {
	t.Helper()
	kthwtest.LongTurn(t, 1)
	return common.Use(t, kthwtest.Options{})
}

// endToEnd skips a test of three controllers that takes minutes, unless KTHWD_E2E is set.
// instead says which test of make test has a part of it.
func endToEnd(t *testing.T, instead string) {
	t.Helper()
	if os.Getenv("KTHWD_E2E") == "" {
		t.Skipf("KTHWD_E2E is not set: run make test-e2e (%s)", instead)
	}
}
