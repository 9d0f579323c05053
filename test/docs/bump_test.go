package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// ownVersions are the Kubernetes modules that are released separately.
// k8s.io/kubernetes requires a version of each, which go mod tidy selects.
var ownVersions = []string{"k8s.io/klog/v2", "k8s.io/kube-openapi", "k8s.io/utils"}

// TestBump requires make bump to move every Kubernetes and etcd module in go.mod to the
// given versions, and to print everything that upstream forces on kthwd.
func TestBump(t *testing.T) {
	before := read(t, "go.mod")
	out := dryBump(t, "v1.99.4", "v3.98.7")
	if read(t, "go.mod") != before {
		t.Fatal("DRY=1 has changed go.mod")
	}
	for _, module := range modules(before) {
		var want string
		switch {
		case slices.Contains(ownVersions, module):
			continue
		case module == "k8s.io/kubernetes":
			want = " k8s.io/kubernetes@v1.99.4"
		case strings.HasPrefix(module, "k8s.io/"):
			want = " -replace=" + module + "=" + module + "@v0.99.4"
		case strings.HasPrefix(module, "go.etcd.io/etcd/"):
			want = " " + module + "@v3.98.7"
		default:
			continue
		}
		if !strings.Contains(out, want+" ") && !strings.Contains(out, want+"\n") {
			t.Errorf("%s: no command has%s", module, want)
		}
	}
	forced := page{architecture, read(t, architecture)}.section(t, "## What upstream forces on us")
	for _, file := range upstream.FindAllString(forced, -1) {
		if !strings.Contains(out, file) {
			t.Errorf("the list lacks %s", file)
		}
	}
	if !strings.Contains(out, "\n[ ] ") {
		t.Errorf("no item to check off:\n%s", out)
	}
}

// TestBumpRefuses requires an invalid version to be refused before any change.
func TestBumpRefuses(t *testing.T) {
	for _, tt := range []struct{ name, kubernetes, etcd, want string }{
		{"nothing", "", "", "K8S is ''"},
		{"no v", "1.37.3", "v3.7.4", "K8S is '1.37.3'"},
		{"of the libraries", "v0.37.3", "v3.7.4", "K8S is 'v0.37.3'"},
		{"no patch", "v1.37.3", "v3.7", "ETCD is 'v3.7'"},
		{"a branch", "v1.37.3", "main", "ETCD is 'main'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := bump(tt.kubernetes, tt.etcd).CombinedOutput()
			if err == nil || !strings.Contains(string(out), tt.want) || !strings.Contains(string(out), "make bump K8S=") {
				t.Errorf("got %v, want it to fail with %q and a hint:\n%s", err, tt.want, out)
			}
		})
	}
}

// bump runs the script with DRY=1, so that it only prints.
func bump(kubernetes, etcd string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(kthwtest.Root(), "packaging", "bump.sh"), kubernetes, etcd)
	cmd.Env = append(os.Environ(), "DRY=1")
	return cmd
}

func dryBump(t *testing.T, kubernetes, etcd string) string {
	t.Helper()
	out, err := bump(kubernetes, etcd).CombinedOutput()
	if err != nil {
		t.Fatalf("bump.sh: %v\n%s", err, out)
	}
	return string(out)
}

// modules are the modules that a go.mod requires or replaces.
func modules(text string) (all []string) {
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+\.\S+) (?:v|=>)`).FindAllStringSubmatch(text, -1) {
		if !slices.Contains(all, m[1]) {
			all = append(all, m[1])
		}
	}
	return all
}
