package envtest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// TestStart prints how many nanoseconds a start takes.
func TestStart(t *testing.T) {
	if os.Getenv("MEASURE") == "" {
		t.Skip("make bench-try runs it")
	}
	begin := time.Now()
	cluster := &envtest.Environment{}
	_, err := cluster.Start()
	took := time.Since(begin)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("took=%d\n", took.Nanoseconds())
	if err := cluster.Stop(); err != nil {
		t.Error(err)
	}
}
