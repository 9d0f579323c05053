package fault

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// TestVerbsFindTheController: a verb without --data-dir is about the controller that answers
// at the metrics address, wherever its directory is.
func TestVerbsFindTheController(t *testing.T) {
	c := use(t)
	alone := fmt.Sprintf("metrics-address: 127.0.0.1:%d\n", c.Ports.Metrics)
	t.Run("alone", func(t *testing.T) { verbsFind(t, c, alone) })
	// Of a load balancer only its socket counts here, which is there until another one replaces it.
	socket, err := net.Listen("unix", filepath.Join(t.TempDir(), "status.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Run("beside a load balancer", func(t *testing.T) { verbsFind(t, c, alone+"status-socket: "+socket.Addr().String()+"\n") })
}

// verbsFind runs verbs with a configuration file that does not name the data directory.
func verbsFind(t *testing.T, c *kthwtest.Controller, settings string) {
	file := filepath.Join(t.TempDir(), "kthwd.yaml")
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
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
	want := fmt.Sprintf("https://%s:%d", c.Address, c.Ports.Secure)
	if out := kthwd(t, "node", "token", "create", "--config="+file); !strings.Contains(out, "--server="+want+" ") {
		t.Errorf("node token create: got\n%s\nwant the server %s", out, want)
	}
	if out := kthwd(t, "kubeconfig", "create", "joe", "--out=-", "--config="+file); !strings.Contains(out, "server: "+want+"\n") {
		t.Errorf("kubeconfig create: want the server %s", want)
	}
}

// TestVerbsFindAnothersController: a verb of a user who may not read the files of the controller
// that answers says whose they are.
func TestVerbsFindAnothersController(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run a verb as another user")
	}
	c := use(t)
	binary := filepath.Join(t.TempDir(), "kthwd")
	err := os.Link(kthwtest.Binary(t), binary)
	if err != nil { // on another file system
		data, errRead := os.ReadFile(kthwtest.Binary(t))
		err = errors.Join(errRead, os.WriteFile(binary, data, 0o755))
	}
	file := filepath.Join(filepath.Dir(binary), "kthwd.yaml")
	if err == nil {
		err = os.WriteFile(file, fmt.Appendf(nil, "metrics-address: 127.0.0.1:%d\n", c.Ports.Metrics), 0o644)
	}
	for dir := filepath.Dir(binary); err == nil && dir != os.TempDir(); dir = filepath.Dir(dir) {
		err = os.Chmod(dir, 0o755)
	}
	for dir := filepath.Dir(c.Dir); err == nil && dir != os.TempDir(); dir = filepath.Dir(dir) {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	for _, verb := range [][]string{{"kubeconfig", "create", "jane", "--out=-"}, {"kubeconfig", "list"}, {"node", "token", "create"}, {"pki", "renew"}} {
		cmd := exec.CommandContext(t.Context(), binary, append(verb, "--config="+file)...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.Dir) || !strings.Contains(string(out), "belongs to the user root") {
			t.Errorf("kthwd %v: got %v, %s", verb, err, out)
		}
	}
}
