package attack

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// M5, M6, L4: the load balancer, which every client reaches, is not the user to whom the keys
// belong, no core dump has them, and no other user can take the socket of its upgrades.
func TestUnitsKeepUsersApart(t *testing.T) {
	controller, lb := unit(t, "kthwd-controller"), unit(t, "kthwd-lb")
	if controller["User"] == lb["User"] || lb["User"] == "" || lb["User"] == "root" {
		t.Errorf("the load balancer runs as the user %q, and the controller as %q", lb["User"], controller["User"])
	}
	if !strings.Contains(lb["InaccessiblePaths"], "/var/lib/kubernetes") {
		t.Error("the load balancer sees the controller's files")
	}
	for name, u := range map[string]map[string]string{"controller": controller, "load balancer": lb} {
		if u["LimitCORE"] != "0" {
			t.Errorf("a %s that crashes leaves a core dump of %q bytes", name, cmp.Or(u["LimitCORE"], "any number of"))
		}
	}
	m := regexp.MustCompile(`--upgrade-socket=(\S+)`).FindStringSubmatch(lb["ExecStart"])
	switch {
	case m == nil || strings.HasPrefix(m[1], "@"):
		t.Errorf("the socket of upgrades has an abstract name, which any user can take: %s", lb["ExecStart"])
	case filepath.Dir(m[1]) != filepath.Join("/run", lb["RuntimeDirectory"]) || lb["RuntimeDirectoryMode"] != "0700":
		t.Errorf("the socket %s is not in a directory of the load balancer alone: %q, mode %q", m[1], lb["RuntimeDirectory"], lb["RuntimeDirectoryMode"])
	}
}

// unit returns the settings of a unit file; of those that stand several times, all values.
func unit(t *testing.T, name string) map[string]string {
	t.Helper()
	dir := cmp.Or(os.Getenv("KTHWD_ATTACK_UNITS"), filepath.Join(kthwtest.Root(), "packaging", "systemd"))
	text, err := os.ReadFile(filepath.Join(dir, name+".service"))
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			settings[key] = strings.TrimSpace(settings[key] + " " + value)
		}
	}
	return settings
}

// L13: a scanner that looks for the flags of the programs has something to read.
func TestCommandLinesAreShown(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	for program, flag := range map[string]string{"etcd": "--client-cert-auth=true", "kube-apiserver": "--authorization-mode=Node,RBAC", "kube-controller-manager": "--use-service-account-credentials=true", "kube-scheduler": "--kubeconfig="} {
		if code, out := kthwd(t, "explain", program, "-o", "shell", "--config=", "--data-dir="+dir, "--advertise-address=127.0.0.1"); code != 0 || !strings.Contains(out, flag) {
			t.Errorf("kthwd explain %s: exit code %d, without %s:\n%s", program, code, flag, out)
		}
	}
	if code, out := kthwd(t, "audit", "--standard=cis", "--config=", "--data-dir="+dir, "--advertise-address=127.0.0.1", "--profile=cis"); code != 0 || !strings.Contains(out, "1.2.6") {
		t.Errorf("kthwd audit: exit code %d\n%s", code, out)
	}
}
