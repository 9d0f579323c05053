package config

import (
	"os/exec"
	"strings"
	"testing"
)

// The packages that are worked on most compile and are tested in seconds,
// because none of them links what is heavy.
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
