package docs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// adopting is the page whose machine had a control plane of four programs.
const adopting = "docs/operations/adopting.md"

// handmade lists the flags of the guide's units that today's programs still have, or translate.
func handmade() map[string][]string {
	client, peer := "https://"+address+":2379", "https://"+address+":2380"
	return map[string][]string{
		"etcd": {
			"--name controller-0", "--cert-file=" + guideDir + "/kubernetes.pem", "--key-file=" + guideDir + "/kubernetes-key.pem",
			"--peer-cert-file=" + guideDir + "/kubernetes.pem", "--peer-key-file=" + guideDir + "/kubernetes-key.pem",
			"--trusted-ca-file=" + guideDir + "/ca.pem", "--peer-trusted-ca-file=" + guideDir + "/ca.pem", "--peer-client-cert-auth", "--client-cert-auth",
			"--initial-advertise-peer-urls " + peer, "--listen-peer-urls " + peer, "--listen-client-urls " + client + ",https://127.0.0.1:2379", "--advertise-client-urls " + client,
			"--initial-cluster controller-0=" + peer, "--initial-cluster-state new", "--data-dir=/var/lib/etcd",
		},
		"kube-apiserver": {
			"--advertise-address=" + address, "--allow-privileged=true", "--audit-log-path=/var/lib/audit.log", "--authorization-mode=Node,RBAC", "--bind-address=0.0.0.0",
			"--client-ca-file=" + guideDir + "/ca.pem", "--etcd-cafile=" + guideDir + "/ca.pem", "--etcd-certfile=" + guideDir + "/kubernetes.pem", "--etcd-keyfile=" + guideDir + "/kubernetes-key.pem",
			"--etcd-servers=" + client, "--event-ttl=1h", "--encryption-provider-config=" + guideDir + "/encryption-config.yaml", "--goaway-chance=0.001",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-key-file=" + guideDir + "/service-account.pem",
			"--service-account-signing-key-file=" + guideDir + "/service-account-key.pem", "--service-cluster-ip-range=10.32.0.0/24",
			"--tls-cert-file=" + guideDir + "/kubernetes.pem", "--tls-private-key-file=" + guideDir + "/kubernetes-key.pem", "--v=2",
		},
		"kube-controller-manager": {
			"--address=0.0.0.0", "--cluster-cidr=10.200.0.0/16", "--cluster-name=kubernetes", "--cluster-signing-cert-file=" + guideDir + "/ca.pem",
			"--cluster-signing-key-file=" + guideDir + "/ca-key.pem", "--kubeconfig=" + guideDir + "/kube-controller-manager.kubeconfig", "--leader-elect=true",
			"--root-ca-file=" + guideDir + "/ca.pem", "--service-account-private-key-file=" + guideDir + "/service-account-key.pem",
			"--service-cluster-ip-range=10.32.0.0/24", "--use-service-account-credentials=true", "--v=2",
		},
		"kube-scheduler": {"--kubeconfig=" + guideDir + "/kube-scheduler.kubeconfig", "--leader-elect=true", "--v=2"},
	}
}

// setUpHandmade writes the units of the four programs, runs etcd and the API server for as long as
// it takes to make some content, and stops them. home has the files of the guide's second part.
func setUpHandmade(t *testing.T, dir, home string) {
	t.Helper()
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); errors.Is(err, fs.ErrPermission) {
		os.Exit(notAllowed) // the processes of the machine around this one would be taken for this one's
	} else if err != nil {
		t.Fatal(err)
	}
	units := "/run/systemd/system" // /etc is not this machine's alone
	if err := os.MkdirAll(units, 0o755); err != nil {
		t.Fatal(err)
	}
	exe := func(name string) string { return filepath.Join(dir, "path", name) }
	for name, flags := range handmade() {
		if err := os.Symlink(filepath.Join(dir, "bin", "kthwd"), exe(name)); err != nil {
			t.Fatal(err)
		}
		text := "[Service]\nExecStart=" + exe(name) + " \\\n  " + strings.Join(flags, " \\\n  ") + "\nRestart=on-failure\n"
		if err := os.WriteFile(filepath.Join(units, name+".service"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"etcd", "kube-apiserver"} {
		cmd := exec.Command(exe(name), strings.Fields(strings.Join(handmade()[name], " "))...)
		var log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
			if t.Failed() {
				t.Logf("%s:\n%s", name, log.String())
			}
		}()
	}
	admin := "--kubeconfig=" + filepath.Join(home, "super-admin.kubeconfig")
	kthwtest.WaitFor(t, "the content of a control plane of four programs", kthwtest.Soon, func() error {
		for _, what := range [][]string{{"namespace", "shop"}, {"secret", "generic", "card", "--namespace=shop", "--from-literal=number=4711"}} {
			out, err := exec.CommandContext(t.Context(), "kubectl", append([]string{admin, "create"}, what...)...).CombinedOutput()
			if err != nil && !strings.Contains(string(out), "already exists") {
				return fmt.Errorf("%w: %s", err, out)
			}
		}
		return nil
	})
}
