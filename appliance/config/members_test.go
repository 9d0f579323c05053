package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInitialCluster(t *testing.T) {
	for _, tt := range []struct {
		name, list string
		args       []string
		want       string // all problems
	}{
		{name: "three", list: "c0=10.0.1.73,c1=10.0.1.35,c2=10.0.1.36"},
		{name: "one", list: "c0=10.0.1.73"},
		{name: "no pair", list: "c0=10.0.1.73,c1", want: `--initial-cluster "c1" is not NAME=ADDRESS`},
		{name: "a URL", list: "c0=https://10.0.1.73:2380", want: `--initial-cluster c0=https://10.0.1.73:2380: "https://10.0.1.73:2380" is not an IP address`},
		{name: "no name", list: "=10.0.1.73", want: `--initial-cluster =10.0.1.73: "" is not a name: want letters, digits, dots and dashes`},
		{name: "unreachable", list: "c0=0.0.0.0", want: `--initial-cluster c0=0.0.0.0: "0.0.0.0" is not an address that other machines can reach`},
		{name: "a zone", list: "c0=fe80::1%eth0", want: `--initial-cluster c0=fe80::1%eth0: "fe80::1%eth0" has a zone, which other machines cannot use`},
		{name: "twice", list: "c0=10.0.1.73,c0=10.0.1.73", want: "--initial-cluster c0=10.0.1.73: the name is already that of c0=10.0.1.73\n" +
			"--initial-cluster c0=10.0.1.73: the address is already that of c0=10.0.1.73"},
		{name: "not in it", list: "c1=10.0.1.35,c2=10.0.1.36", want: "--initial-cluster c1=10.0.1.35,c2=10.0.1.36 lacks this controller, c0=10.0.1.73"},
		{name: "another name", list: "c1=10.0.1.73,c2=10.0.1.36", want: `--initial-cluster calls the controller at --advertise-address 10.0.1.73 "c1"; its --name is "c0"`},
		{name: "another address", list: "c0=10.0.1.35,c2=10.0.1.36", want: "--initial-cluster has c0=10.0.1.35; the --advertise-address of --name c0 is 10.0.1.73"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := load(t, "", "--role=controller", "--name=c0", "--advertise-address=10.0.1.73", "--initial-cluster="+tt.list)
			if diff := cmp.Diff(tt.want, lines(l, err)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestEtcdInitialCluster(t *testing.T) {
	c := Controller{Name: "c0", AdvertiseAddress: "10.0.1.73", EtcdPeerPort: 2380}
	if got, want := c.EtcdInitialCluster(), "c0=https://10.0.1.73:2380"; got != want {
		t.Errorf("alone: got %s, want %s", got, want)
	}
	c.InitialCluster = []string{"c0=10.0.1.73", "c1=fd00::1"}
	if got, want := c.EtcdInitialCluster(), "c0=https://10.0.1.73:2380,c1=https://[fd00::1]:2380"; got != want {
		t.Errorf("two: got %s, want %s", got, want)
	}
}

func TestEvenWarning(t *testing.T) {
	for n, want := range map[int]string{
		1: "", 2: "2 controllers survive no loss: both are needed for a quorum; use 1 or 3", 3: "",
		4: "4 controllers survive the loss of 1, no more than 3 do: use 3 or 5", 5: "", 6: "6 controllers survive the loss of 2, no more than 5 do: use 5 or 7",
	} {
		if got := strings.Join(EvenWarning(n), "\n"); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}

// A relative path in the file starts from the file's directory, one in a flag from the
// working directory.
func TestRelativePaths(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kthwd.yaml")
	text := "data-dir: .\netcd-data-dir: ../etcd\nbackend-ca: ca.pem\naccess-log: \"\"\nupgrade-socket: '@name'\ndiscovery-cache: /abs\ncheck-path: /readyz\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir("/")
	l := NewLoader()
	if err := l.fs.Parse([]string{"--config=" + file, "--check-client-key=key.pem"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Load(); err != nil {
		t.Fatal(err)
	}
	if err := l.Resolve(); err != nil {
		t.Fatal(err)
	}
	dir, k, b := filepath.Dir(file), l.Config.Controller, l.Config.LB
	for _, p := range []struct{ name, got, want string }{
		{"data-dir", k.DataDir, dir}, {"etcd-data-dir", k.EtcdDataDir, filepath.Join(filepath.Dir(dir), "etcd")},
		{"backend-ca", b.BackendCA, filepath.Join(dir, "ca.pem")}, {"access-log", b.AccessLog, ""}, {"upgrade-socket", b.UpgradeSocket, "@name"},
		{"discovery-cache", b.DiscoveryCache, "/abs"}, {"check-path", b.CheckPath, "/readyz"}, {"check-client-key", b.CheckKey, "/key.pem"},
	} {
		if p.got != p.want {
			t.Errorf("%s: got %q, want %q", p.name, p.got, p.want)
		}
	}
}

// The file of a controller that joined has all settings that were set for it, and no
// others.
func TestJoinedFile(t *testing.T) {
	c := Default()
	c.Role, c.LogLevel = []string{RoleController}, []string{"info", "etcd=debug"}
	c.MetricsAddress, c.MetricsPprof = "127.0.0.1:10310", true
	k := &c.Controller
	k.DataDir, k.Name, k.AdvertiseAddress, k.SecurePort = "/var/lib/kubernetes-c1", "c1", "10.0.1.35", 7443
	k.EtcdDataDir = k.Layout().Etcd()
	k.InitialCluster, k.InitialClusterState = []string{"c0=10.0.1.73", "c1=10.0.1.35"}, StateExisting
	k.APIServerArgs = []string{"v=2", "feature-gates=A=true,B=false"}
	is := NewLoader()
	if err := is.parseFile(FileName, JoinedFile(c)); err != nil {
		t.Fatal(err)
	}
	want := NewLoader()
	want.Config = c
	want.Config.Controller.EtcdDataDir = ""
	for i, s := range want.table {
		if got := is.table[i].yaml(); got != s.yaml() {
			t.Errorf("%s: got %s, want %s", s.name, got, s.yaml())
		}
	}
	if text := string(JoinedFile(c)); strings.Contains(text, "scheduler-port") || strings.Contains(text, "listen") {
		t.Errorf("says what is the default, or another role's:\n%s", text)
	}
	if err := is.Validate(); err != nil {
		t.Errorf("kthwd does not take it: %v", err)
	}
}
