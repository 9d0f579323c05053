package fault

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// TestVerbsFindTheController: a verb without --data-dir is about the controller that answers
// at the metrics address, wherever its directory is.
func TestVerbsFindTheController(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	file := filepath.Join(t.TempDir(), "kthwd.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "metrics-address: 127.0.0.1:%d\n", c.Ports.Metrics), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, verb := range [][]string{
		{"status", "--config=" + file},
		{"etcd", "status", "--config=" + file},
		{"etcd", "space", "--config=" + file},
		{"member", "list", "--config=" + file},
		{"backup", "create", "--plain-keys", "--dir=" + t.TempDir(), "--config=" + file},
		{"log-level", "--config=" + file},
		{"kubectl", "--config=" + file, "get", "namespaces"},
		{"pki", "renew", "admin", "--config=" + file},
		{"kubeconfig", "create", "jane", "--out=" + filepath.Join(t.TempDir(), "jane.kubeconfig"), "--config=" + file},
		{"kubeconfig", "list", "--config=" + file},
		{"kubeconfig", "revoke", "jane", "--config=" + file},
	} {
		cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), verb...)
		cmd.Env = append(os.Environ(), "KUBECONFIG=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("kthwd %v: %v\n%s", verb, err, out)
		}
	}
	t.Run("its address", func(t *testing.T) {
		want := fmt.Sprintf("https://%s:%d", c.Address, c.Ports.Secure)
		if out := kthwd(t, "node", "token", "create", "--config="+file); !strings.Contains(out, "--server="+want+" ") {
			t.Errorf("node token create: got\n%s\nwant the server %s", out, want)
		}
		if out := kthwd(t, "kubeconfig", "create", "joe", "--out=-", "--config="+file); !strings.Contains(out, "server: "+want+"\n") {
			t.Errorf("kubeconfig create: want the server %s", want)
		}
	})
}
