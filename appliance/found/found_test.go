package found

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/tools/txtar"

	"kthwd/appliance/advice"
	"kthwd/appliance/found/unitfile"
	"kthwd/test/harness"
)

// unpack writes the files of an archive below a new directory.
func unpack(t *testing.T, archive string) (root string) {
	t.Helper()
	a, err := txtar.ParseFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	root = t.TempDir()
	for _, f := range a.Files {
		path := filepath.Join(root, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		data := f.Data
		if filepath.Base(path) == "cmdline" || filepath.Base(path) == "environ" {
			data = bytes.TrimSuffix(data, []byte("\n"))
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// describe writes all that Read has found.
func describe(m *Machine) []byte {
	var b bytes.Buffer
	for _, p := range m.Programs {
		fmt.Fprintf(&b, "%s: %s, of %s %s\n", p.Name, p.Exe, p.From, p.Version)
		for _, a := range p.Args {
			fmt.Fprintf(&b, "  %q\n", a)
		}
		for _, e := range p.Env {
			fmt.Fprintf(&b, "  environment %q\n", e)
		}
		for _, path := range []string{"/etc/kubernetes/pki/ca.crt", "/etc/kubernetes/scheduler.conf"} {
			if p.Mounts != nil {
				fmt.Fprintf(&b, "  %s is %s\n", path, p.Path(path))
			}
		}
	}
	if m.Health != nil {
		fmt.Fprintf(&b, "health: %+v\n", *m.Health)
	}
	for _, s := range m.Streams {
		fmt.Fprintf(&b, "stream: %+v\n", s)
	}
	for _, n := range m.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	for _, name := range m.Missing {
		fmt.Fprintf(&b, "missing: %s\n", name)
	}
	for _, p := range m.Problems {
		hint, _ := advice.Of(p)
		fmt.Fprintf(&b, "problem: %s\n  hint: %s\n", p, hint)
	}
	return b.Bytes()
}

// Each variant of a description becomes the words that the program is started with, or a
// problem with the way out.
func TestGolden(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(archives) < 12 {
		t.Fatalf("got %d variants, %v, want at least 12", len(archives), err)
	}
	for _, archive := range archives {
		name := strings.TrimSuffix(filepath.Base(archive), ".txtar")
		t.Run(name, func(t *testing.T) {
			got := describe(Read(t.Context(), Options{Root: unpack(t, archive)}))
			harness.Golden(t, filepath.Join("testdata", name+".golden"), got)
		})
	}
}

// A masked unit is not read, and a link in sites-enabled leads below the other root.
func TestLinks(t *testing.T) {
	root := unpack(t, "testdata/masked.txtar")
	unit := filepath.Join(root, "etc/systemd/system/kube-scheduler.service")
	if err := os.Remove(unit); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", unit); err != nil {
		t.Fatal(err)
	}
	if got := only(Read(t.Context(), Options{Root: root}).Programs, "kube-scheduler"); len(got) != 0 {
		t.Errorf("masked: got %v, want none", got)
	}
	if err := os.Remove(unit); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/lib/systemd/system/kube-scheduler.service", unit); err != nil {
		t.Fatal(err)
	}
	if got := only(Read(t.Context(), Options{Root: root}).Programs, "kube-scheduler"); len(got) != 1 || got[0].Args[0] != "--from=lib" {
		t.Errorf("linked: got %v, want the unit in lib", got)
	}
}

// What somebody has put in the place of a file is not waited for.
func TestReadWaitsForNobody(t *testing.T) {
	root := unpack(t, "testdata/environment.txtar")
	file := filepath.Join(root, "etc/kubernetes/apiserver.env")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	m := Read(t.Context(), Options{Root: root})
	if len(m.Problems) != 1 || !strings.Contains(m.Problems[0].Error(), "apiserver.env is no regular file") {
		t.Errorf("got %v, want that the file is no regular one", m.Problems)
	}
}

// A drop-in may be masked below another root, too, and the unit stays.
func TestMaskedDropIn(t *testing.T) {
	root := unpack(t, "testdata/values.txtar")
	dir := filepath.Join(root, "etc/systemd/system/kube-scheduler.service.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.DevNull, filepath.Join(dir, "10.conf")); err != nil {
		t.Fatal(err)
	}
	m := Read(t.Context(), Options{Root: root})
	if got := only(m.Programs, "kube-scheduler"); len(got) != 1 {
		t.Errorf("got %v, want the unit; %v", got, m.Notes)
	}
}

// --from=running is the word of the administrator that the processes are the cluster's.
func TestStrangersByWord(t *testing.T) {
	m := Read(t.Context(), Options{Root: unpack(t, "testdata/strangers.txtar"), From: []string{FromRunning}})
	got := only(m.Programs, "kube-apiserver")
	if len(got) != 1 || got[0].From != "process 74" || len(m.Problems) > 0 {
		t.Errorf("got %v, %v, want process 74", got, m.Problems)
	}
}

// An include that includes itself ends.
func TestEndlessInclude(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc/nginx"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/nginx/nginx.conf"), []byte("include nginx.conf;\ninclude nginx.conf;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	Read(t.Context(), Options{Root: root})
}

// Files that cannot be read are named, and their owner is the way.
func TestUnreadable(t *testing.T) {
	root := unpack(t, "testdata/kubeadm.txtar")
	path := filepath.Join(root, "etc/kubernetes/manifests/etcd.yaml")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil { // root reads every file
		t.Fatal(err)
	}
	m := Read(t.Context(), Options{Root: root})
	if len(m.Problems) != 1 || len(m.Missing) != 1 || !strings.Contains(m.Problems[0].Error(), "etcd.yaml") {
		t.Errorf("got %v, want a problem with etcd.yaml, and that etcd is missing", m.Problems)
	}
}

// The environment of a process matters where nothing else tells it: a description does.
func TestClosedProcess(t *testing.T) {
	running := []Program{{Name: "etcd", From: "process 7", Kind: FromRunning, closed: true}}
	written := []Program{{Name: "etcd", From: "/etc/systemd/system/etcd.service", Kind: FromUnits, Env: []string{"ETCD_NAME=a"}}}
	alone, both, units := &Machine{}, &Machine{}, &Machine{}
	alone.choose("etcd", running, nil, nil)
	both.choose("etcd", running, written, nil)
	units.choose("etcd", nil, written, nil) // --from=units
	if len(alone.Problems) != 1 || !strings.Contains(alone.Problems[0].Error(), "etcd, process 7: its environment cannot be read") {
		t.Errorf("a process alone: got %v", alone.Problems)
	}
	if len(both.Problems)+len(units.Problems) != 0 || both.Programs[0].Env[0] != "ETCD_NAME=a" {
		t.Errorf("with a unit: got %v and %v", both, units)
	}
}

func FuzzUnit(f *testing.F) {
	f.Add([]byte("[Service]\nExecStart=/x/etcd \\\n# c\n --a='b c' \"d\\x20\" \\\\\n--e=%H ${F} $G $$\nEnvironment=F=1 \"G=2 3\"\n"))
	f.Add([]byte("[Service]\r\nExecStart=\nExecStart=-@:+!etcd etcd\r\n\\"))
	f.Add([]byte("[Service]\nExecStart=%H")) // of no host
	f.Fuzz(func(t *testing.T, data []byte) {
		u := unit{root: "/nowhere", name: "kube-apiserver.service", path: "/nowhere/kube-apiserver.service"}
		for _, o := range unitfile.Parse(data) {
			if o.Section == "Service" && u.set(o) != nil {
				return
			}
		}
		if p, err := u.program(); err == nil && p.Args != nil && p.Name == "" {
			t.Errorf("words of no program: %q", p.Args)
		}
	})
}

func FuzzNginx(f *testing.F) {
	f.Add([]byte("stream { upstream k { server 10.0.0.1:6443; } server { listen 6443; proxy_pass k; } }\n"))
	f.Add([]byte("server { listen [::]:80 default; server_name \"a b\" ${x}; location /healthz { proxy_pass https://127.0.0.1:6443/healthz; } # c\n}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parseNginx(data)
		if err != nil {
			return
		}
		m := &Machine{}
		for _, d := range all {
			if len(d.words) == 0 {
				t.Fatal("a directive without a name")
			}
			m.health("x", d)
			m.stream("x", d)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte("kind: Pod\nspec:\n  containers:\n  - command: [etcd, --name=a]\n    image: x/etcd:3.6.4-0\n    volumeMounts: [{name: d, mountPath: /a}]\n  volumes: [{name: d, hostPath: {path: /b}}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parseManifest(data)
		if err == nil && p.Name != "" {
			p.Path("/a/b")
		}
	})
}
