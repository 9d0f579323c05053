package fault

import (
	"os"
	"testing"

	"kthwd/test/kthwtest"
)

func TestMain(m *testing.M) {
	kthwtest.AtOnce(4)
	os.Exit(m.Run())
}
