package upgrade

import (
	"os"
	"testing"

	"kthwd/appliance/pki"
	"kthwd/cmd/kthwd/cli"
	"kthwd/test/harness"
)

// Root executes no command that another user has written into admin.kubeconfig.
func TestAdminAPI(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a file to another user")
	}
	layout := pki.Layout{Dir: t.TempDir()}
	path := layout.Kubeconfig(pki.NameAdmin)
	text := "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: https://127.0.0.1:6443}}]\n" +
		"contexts: [{name: a, context: {cluster: a, user: a}}]\n" +
		"users: [{name: a, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: /tmp/mine, interactiveMode: Never}}}]\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[int]string{0: "", 12345: "is of the user #12345, and names a command"} {
		if err := os.Chown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
		_, err := adminAPI(cli.Target{}, layout, nil)
		harness.CheckRefusal(t, err, want, "sudo -u '#12345'")
	}
}
