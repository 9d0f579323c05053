package config

import (
	"os/exec"
	"strings"
	"testing"
)

// These packages compile and run their tests in seconds, because they link neither
// Kubernetes nor etcd.
func TestLightPackagesStayLight(t *testing.T) {
	if testing.Short() {
		t.Skip("runs go list")
	}
	light := []string{"kthwd/appliance/config", "kthwd/appliance/logging", "kthwd/appliance/member", "kthwd/appliance/pki", "kthwd/appliance/preflight", "kthwd/appliance/program", "kthwd/appliance/status", "kthwd/appliance/supervise", "kthwd/appliance/text", "kthwd/health", "kthwd/lb", "kthwd/lb/check"}
	for _, pkg := range light {
		out, err := exec.Command("go", "list", "-deps", pkg).Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v", pkg, err)
		}
		for dep := range strings.FieldsSeq(string(out)) {
			for _, heavy := range []string{"k8s.io/", "go.etcd.io/", "google.golang.org/grpc"} {
				if strings.HasPrefix(dep, heavy) {
					t.Errorf("%s links %s", pkg, dep)
				}
			}
		}
	}
}
