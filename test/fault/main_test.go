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
