package fault

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// A start that is refused has written nothing: the data directory that it would have made
// is not there, and an empty one is still empty.
func TestRefusedStartWritesNothing(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	broken := filepath.Join(t.TempDir(), "broken.yaml")
	if err := os.WriteFile(broken, []byte("kind: AuthorizationConfiguration\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		args  []string
		code  int
		parts []string
	}{
		{"a setting", []string{"--cluster-cidr=10.32.0.0/16"}, 2, []string{"overlaps"}},
		{"a flag that is none", []string{"--kube-scheduler-arg=nonsense=1"}, 2, []string{"kube-scheduler has no such flag"}},
		{"two flags of etcd", []string{"--etcd-arg=heartbeat-interval=100", "--etcd-arg=election-timeout=200"}, 2, []string{"etcd: --election-timeout"}},
		{"a value that upstream's validation refuses", []string{"--kube-apiserver-arg=storage-backend=mysql"}, 2, []string{"kube-apiserver: --storage-backend invalid"}},
		{"a controller that is none", []string{"--kube-controller-manager-arg=controllers=nonsense"}, 2, []string{"nonsense"}},
		{"a file that upstream's validation reads", []string{"--kube-apiserver-arg=authorization-config=" + broken}, 2, []string{"AuthorizationConfiguration from file"}},
		{"a flag that kthwd relies on", []string{"--kube-apiserver-arg=authorization-mode-"}, 2, []string{"everybody may do everything"}},
		{"a file that is not there", []string{"--kube-apiserver-arg=audit-policy-file=/nowhere.yaml"}, 1, []string{"/nowhere.yaml"}},
		{"a feature gate that is none", []string{"--kube-apiserver-arg=feature-gates=Nonsense=true"}, 2, []string{"Nonsense"}},
		{"a port", []string{"--health-address=" + taken.Addr().String()}, 1, []string{"already in use"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kthwtest.Turn(t, 1)
			for _, exists := range []bool{false, true} {
				parent := t.TempDir()
				a := attempt{dir: filepath.Join(parent, "var", "data"), ports: kthwtest.FreePorts(t, "127.0.0.1"), args: append(tt.args, "--etcd-data-dir="+filepath.Join(parent, "disk", "etcd"))}
				if exists {
					if err := os.MkdirAll(a.dir, 0o700); err != nil {
						t.Fatal(err)
					}
				}
				before := tree(t, parent)
				a.run(t).check(t, tt.code, "-", tt.parts...)
				if after := tree(t, parent); after != before {
					t.Errorf("the directory exists: %v: got %s, want %s", exists, after, before)
				}
			}
		})
	}
}

// tree lists all names below dir.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, "\n")
}

// A machine that has no IPv4 is found out before a file is made, and the correct second
// start gets a certificate for its own service.
func TestMachineWithoutIPv4(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	kthwtest.Turn(t, 1)
	const network = "ip link set lo up && ip link add eth0 type veth peer name eth1 && ip link set eth0 up && ip link set eth1 up && ip addr add 2001:db8::5/64 dev eth0 nodad && ip -6 route add default dev eth0 && exec \"$0\" \"$@\""
	if out, err := exec.Command("unshare", "-n", "sh", "-c", network, "true").CombinedOutput(); err != nil {
		t.Skipf("no namespace with IPv6 alone here: %v: %s", err, out)
	}
	dir := filepath.Join(t.TempDir(), "data")
	inside := func(cmd *exec.Cmd) {
		binary := cmd.Path
		cmd.Path = "/usr/bin/unshare"
		cmd.Args = append([]string{"unshare", "-n", "sh", "-c", network, binary}, cmd.Args[1:]...)
	}
	runToEnd(t, inside, "--role=controller", "--config=", "--data-dir="+dir).
		check(t, 2, "--service-cluster-ip-range", "10.32.0.0/24", "2001:db8::5")
	if _, err := os.Stat(dir); err == nil {
		t.Fatalf("%s was made", dir)
	}
	runToEnd(t, inside, "pki", "init", "--config=", "--data-dir="+dir, "--service-cluster-ip-range=fd00:10:32::/112", "--cluster-cidr=fd00:10:200::/48")
	out, err := exec.Command(kthwtest.Binary(t), "pki", "show", "--data-dir="+dir).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "fd00:10:32::1") {
		t.Errorf("pki show: %v\n%s\nwant the service's address", err, out)
	}
}
