package eject

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/lb"
	"kthwd/test/harness"
)

// controller is the input for a controller with the files of a first start.
func controller(t *testing.T) Input {
	t.Helper()
	c := config.Default()
	c.Role = []string{config.RoleController}
	c.Controller.DataDir = filepath.Join(t.TempDir(), "data")
	c.Controller.Name, c.Controller.AdvertiseAddress = "c0", "10.240.0.10"
	l := c.Controller.Layout()
	if err := os.MkdirAll(filepath.Join(l.Etcd(), "member"), 0o700); err != nil {
		t.Fatal(err)
	}
	spec := pki.Spec{Addresses: []string{"10.240.0.10"}, Local: []string{"10.240.0.10"}, Server: c.Controller.LocalServer(), ServiceIP: net.ParseIP("10.32.0.1")}
	if _, err := pki.Ensure(l, spec); err != nil {
		t.Fatal(err)
	}
	return Input{Config: c, Args: ours(c.Controller), Files: program.RunFiles(c.Controller, l), Names: Upstream, Out: "/srv/ejected", Kthwd: "v0", Kubernetes: "v1", Etcd: "3"}
}

// ours are kthwd's own command lines.
func ours(c config.Controller) map[string][]program.Arg {
	l := c.Layout()
	etcd := program.WithEtcdFiles(program.EtcdArgs(c, l, l.EtcdSocket()), pki.StageOf(l).Files(l))
	return map[string][]program.Arg{
		program.Etcd: etcd, program.APIServer: program.WithEtcdClient(program.APIServerArgs(c, l, l.EtcdSocket()), etcd),
		program.ControllerManager: program.ControllerManagerArgs(c, l), program.Scheduler: program.SchedulerArgs(c, l),
	}
}

func made(t *testing.T, in Input) map[string]string {
	t.Helper()
	files, err := Make(in)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, f := range files {
		all[f.Path] = string(f.Data)
	}
	return all
}

// The files of a controller, and of a load balancer.
func TestGolden(t *testing.T) {
	owner := func(b []byte) []byte { // root in CI, somebody elsewhere
		var kept [][]byte
		for line := range bytes.Lines(b) {
			if !bytes.HasPrefix(line, []byte("User=")) && !bytes.HasPrefix(line, []byte("Group=")) && !bytes.Contains(line, []byte("The owner of the data")) {
				kept = append(kept, line)
			}
		}
		return bytes.Join(kept, nil)
	}
	one := controller(t)
	several := controller(t)
	several.Config.Controller.InitialCluster = []string{"c0=10.240.0.10", "c1=10.240.0.11", "c2=10.240.0.12"}
	several.Args, several.Names = ours(several.Config.Controller), Kthwd
	balancer := Input{Config: config.Default(), Out: "/srv/ejected", Kthwd: "v0"}
	balancer.Config.Role = []string{config.RoleLB}
	balancer.Config.LB.Backends = []string{"10.0.1.73:6443", "10.0.1.35:6443 weight=3", "10.0.1.36:6443 backup"}
	for name, in := range map[string]Input{"controller": one, "several": several, "balancer": balancer} {
		t.Run(name, func(t *testing.T) {
			files, err := Make(in)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			for _, f := range files {
				if name == "several" && !strings.HasSuffix(f.Path, "etcd.service") && !strings.HasSuffix(f.Path, "README.txt") {
					continue
				}
				text := bytes.ReplaceAll(f.Data, []byte(in.Config.Controller.DataDir), []byte("/var/lib/kubernetes"))
				b.WriteString("-- " + f.Path + " " + f.Mode.String() + " --\n" + string(owner(text)))
			}
			harness.Golden(t, filepath.Join("testdata", name+".golden"), b.Bytes())
		})
	}
}

// With the guide's one CA, the names are what keeps a worker's certificate out of etcd.
func TestSharedCA(t *testing.T) {
	in := controller(t)
	l := in.Config.Controller.Layout()
	for _, path := range []string{l.EtcdCA(), l.EtcdCAKey(), l.Cert(pki.NameEtcd), l.Key(pki.NameEtcd), l.Names()} {
		_ = os.Remove(path)
	}
	in.Args = ours(in.Config.Controller)
	unit := made(t, in)["systemd/etcd.service"]
	for _, want := range []string{"--peer-cert-allowed-cn=kubernetes", "--client-cert-allowed-hostname=kubernetes.default,", "--trusted-ca-file=" + l.CA(), "--enable-grpc-gateway=false"} {
		if !strings.Contains(unit, want) {
			t.Errorf("lacks %s:\n%s", want, unit)
		}
	}
}

// kthwd's etcd accepts controllers only, whichever CA it trusts, and so does the one without kthwd.
func TestAnotherCA(t *testing.T) {
	in, other := controller(t), controller(t)
	for i, a := range in.Args[program.Etcd] {
		if a.Key == "trusted-ca-file" || a.Key == "peer-trusted-ca-file" {
			in.Args[program.Etcd][i].Value = other.Config.Controller.Layout().CA()
		}
	}
	if unit := made(t, in)["systemd/etcd.service"]; strings.Count(unit, "-allowed-") != 2 {
		t.Errorf("got\n%s", unit)
	}
}

// The user's own names of etcd's clients stay.
func TestUsersNames(t *testing.T) {
	in := controller(t)
	users := []program.Arg{{Key: "client-cert-allowed-hostname", Value: "mine"}, {Key: "peer-cert-allowed-hostname", Value: "ours"}}
	in.Args[program.Etcd] = append(in.Args[program.Etcd], users...)
	in.Verbosity = map[string]int{program.Scheduler: 4}
	files := made(t, in)
	unit := files["systemd/etcd.service"]
	if strings.Count(unit, "-allowed-") != 2 || !strings.Contains(unit, "hostname=mine") {
		t.Errorf("got\n%s", unit)
	}
	if !strings.Contains(files["systemd/kube-scheduler.service"], "--v=4") {
		t.Error("the user's --v is lost")
	}
}

// With profile cis the API server reaches etcd over TLS already, and Pod Security is in a file.
func TestCIS(t *testing.T) {
	in := controller(t)
	in.Config.Controller.Profile = config.ProfileCIS
	in.Args, in.Files = ours(in.Config.Controller), program.RunFiles(in.Config.Controller, in.Config.Controller.Layout())
	files := made(t, in)
	if unit := files["systemd/kube-apiserver.service"]; strings.Count(unit, "--etcd-cafile") != 1 || !strings.Contains(unit, "--etcd-servers=https://127.0.0.1:2379 ") {
		t.Errorf("got\n%s", unit)
	}
	if !strings.Contains(files["config/admission.yaml"], "PodSecurity") {
		t.Error("Pod Security is lost")
	}
}

// Nothing names kthwd's run directory, which only a start of kthwd fills.
func TestNoRunDirectory(t *testing.T) {
	in := controller(t)
	in.Config.Controller.TracingEndpoint = "127.0.0.1:4317"
	in.Args, in.Files = ours(in.Config.Controller), program.RunFiles(in.Config.Controller, in.Config.Controller.Layout())
	signer := filepath.Join(in.Config.Controller.Layout().Run(), pki.SignerFile)
	in.Args[program.ControllerManager] = program.WithSigner(in.Args[program.ControllerManager], signer)
	in.Files[signer] = []byte("one CA\n")
	files := made(t, in)
	for path, text := range files {
		if strings.Contains(text, in.Config.Controller.Layout().Run()) {
			t.Errorf("%s names the run directory:\n%s", path, text)
		}
		if strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("%s has a key", path)
		}
	}
	if !strings.Contains(files["systemd/kube-controller-manager.service"], "--cluster-signing-cert-file="+ConfigDir+"/"+pki.SignerFile) {
		t.Error("the signer's certificate is lost")
	}
	for _, want := range []string{"config/tracing.yaml", "config/admission.yaml", "config/" + pki.SignerFile} {
		if files[want] == "" {
			t.Errorf("lacks %s", want)
		}
	}
}

// What a user sets reaches the program to the byte, variables included.
func TestAwkwardValues(t *testing.T) {
	in := controller(t)
	in.Args[program.Scheduler] = append(in.Args[program.Scheduler], program.Arg{Key: "x", Value: "a b %n $HOME \"q\" \\"})
	in.Variables = []string{"HTTP_PROXY=http://u:p$`\"\\@proxy:3128"}
	files := made(t, in)
	if unit := files["systemd/kube-scheduler.service"]; !strings.Contains(unit, `"--x=a b %%n $$HOME \"q\" \\"`) || !strings.Contains(unit, "EnvironmentFile="+ConfigDir+"/environment\n") {
		t.Errorf("got\n%s", unit)
	}
	if got, want := files["config/environment"], "HTTP_PROXY=\"http://u:p\\$\\`\\\"\\\\@proxy:3128\"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRefuses(t *testing.T) {
	for _, tt := range []struct {
		name       string
		change     func(t *testing.T, in *Input)
		want, hint string
	}{
		{"no cluster", func(t *testing.T, in *Input) { in.Config.Controller.DataDir = t.TempDir() }, "there is no cluster yet", "--data-dir"},
		{"a restore", func(t *testing.T, in *Input) { write(t, in.Config.Controller.Layout().Restore()) }, "a restore has not ended", "start of kthwd"},
		{"a join", func(t *testing.T, in *Input) { write(t, in.Config.Controller.Layout().JoinRecord()) }, "has not arrived", "kthwd status"},
		{"a move of etcd's CA", func(t *testing.T, in *Input) {
			l := in.Config.Controller.Layout()
			appendFile(t, l.EtcdCA(), l.CA())
		}, "has not ended: etcd trusts both CAs", "kthwd pki split-etcd-ca"},
		{"a file is gone", func(t *testing.T, in *Input) {
			if err := os.Remove(in.Config.Controller.Layout().EncryptionConfig()); err != nil {
				t.Fatal(err)
			}
		}, "encryption-config.yaml", "kthwd pki init"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := controller(t)
			tt.change(t, &in)
			_, err := Make(in)
			harness.CheckRefusal(t, err, tt.want, tt.hint)
		})
	}
	for _, tt := range []struct {
		name       string
		change     func(c *lb.Config)
		want, hint string
	}{
		{"discovery", func(c *lb.Config) { c.Backends = nil }, "by discovery", "--backend"},
		{"SRV records", func(c *lb.Config) { c.Backends = []string{"_https._tcp.example.com"} }, "SRV records", "--backend"},
		{"backup with a hash", func(c *lb.Config) { c.Balance = lb.SourceHash; c.Backends = []string{"a:1", "b:1 backup"} }, "b:1 is a backup", "--balance"},
		{"PROXY v2", func(c *lb.Config) { c.ProxyProtocol = lb.ProxyV2 }, "version 1", "v1"},
		{"two sources", func(c *lb.Config) { c.Sources = []string{"10.0.0.1", "10.0.0.2"} }, "one address", "leave one"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := Input{Config: config.Default()}
			in.Config.Role, in.Config.LB.Backends = []string{config.RoleLB}, []string{"10.0.1.73:6443"}
			tt.change(&in.Config.LB)
			_, err := Make(in)
			harness.CheckRefusal(t, err, tt.want, tt.hint)
		})
	}
}

// Write changes nothing but its directory, which must be empty.
func TestWrite(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "out")
	files := []File{{"README.txt", 0o644, []byte("a")}, {"config/environment", 0o600, []byte("b")}}
	if err := Write(dir, files); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Path))
		info, _ := os.Stat(filepath.Join(dir, f.Path))
		if err != nil || !slices.Equal(data, f.Data) || info.Mode() != f.Mode {
			t.Errorf("%s: got %q, %v, %v", f.Path, data, info, err)
		}
	}
	harness.CheckRefusal(t, Write(dir, files), "is not empty: it has README.txt", "--out")
	harness.CheckRefusal(t, Write(filepath.Join(dir, "README.txt"), files), "not a directory", "--out")
	if entries, err := os.ReadDir(top); err != nil || len(entries) != 1 {
		t.Errorf("beside the directory: got %v, %v", entries, err)
	}
}

// A Write that fails leaves nothing: no file and no directory that it has made.
func TestWriteFails(t *testing.T) {
	top := t.TempDir()
	files := []File{{"README.txt", 0o644, []byte("a")}, {"config/environment", 0o600, []byte("b")}, {"config/" + strings.Repeat("x", 300), 0o644, nil}}
	empty := filepath.Join(top, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(top, "a", "b"), empty} {
		if err := Write(dir, files); err == nil {
			t.Fatal("a name of 300 characters was written")
		}
	}
	if left, err := filepath.Glob(filepath.Join(top, "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(top, "a")); err == nil {
		t.Error("a directory above is left")
	}
}

// Units that root installs are not written where another user could exchange them.
func TestWriteUnshared(t *testing.T) {
	top := t.TempDir()
	files := []File{{"README.txt", 0o644, []byte("a")}}
	shared, link := filepath.Join(top, "shared"), filepath.Join(top, "link")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(shared, link); err != nil {
		t.Fatal(err)
	}
	harness.CheckRefusal(t, Write(link, files), "is a symbolic link", "remove it")
	if err := os.Chmod(shared, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	harness.CheckRefusal(t, Write(shared, files), "writable by group or others", "chmod go-w")
	if os.Geteuid() == 0 {
		if err := os.Chmod(shared, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(shared, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		harness.CheckRefusal(t, Write(shared, files), "belongs to the user 12345", "run this as that user")
	}
	if entries, err := os.ReadDir(shared); err != nil || len(entries) > 0 {
		t.Errorf("written: %v, %v", entries, err)
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func appendFile(t *testing.T, path, with string) {
	t.Helper()
	a, errA := os.ReadFile(path)
	b, errB := os.ReadFile(with)
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	if err := os.WriteFile(path, append(a, b...), 0o600); err != nil {
		t.Fatal(err)
	}
}
