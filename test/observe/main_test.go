package observe

import (
	"os"
	"testing"

	"kthwd/test/kthwtest"
)

// TestMain lets the end-to-end tests wait beside each other: they wait for Prometheus and for the
// alerts' times, on any number of processors.
func TestMain(m *testing.M) {
	if os.Getenv("KTHWD_E2E") != "" {
		kthwtest.TakeTurns(6)
	}
	os.Exit(m.Run())
}
