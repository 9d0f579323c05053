package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/cmd/kthwd/cli"
	"kthwd/test/harness"
)

// Root executes no command that another user has written into a kubeconfig.
func TestKubeconfigOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a file to another user")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "admin.kubeconfig")
	find := func() error {
		_, err := (&app{App: &cli.App{Args: []string{"kubectl", "get", "nodes"}}}).adminKubeconfig([]string{"--config=", "--data-dir=" + dir})
		return err
	}
	for user, refused := range map[string]bool{
		"{exec: {apiVersion: client.authentication.k8s.io/v1, command: /tmp/mine}}": true,
		"{tokenFile: /etc/shadow}":          true,
		"{auth-provider: {name: oidc}}":     true,
		"{client-key-data: a2V5, token: x}": false,
	} {
		text := "apiVersion: v1\nkind: Config\nusers:\n- name: a\n  user: " + user + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, uid := range []int{0, 12345} {
			if err := os.Chown(path, uid, uid); err != nil {
				t.Fatal(err)
			}
			want := ""
			if refused && uid != 0 {
				want = "is of the user #12345, and names a command"
			}
			harness.CheckRefusal(t, find(), want, "sudo -u '#12345' kthwd kubectl get nodes")
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := find(); err == nil || !strings.Contains(err.Error(), "has no admin.kubeconfig") {
		t.Errorf("without the file: got %v", err)
	}
}
