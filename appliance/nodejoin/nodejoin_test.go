package nodejoin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/workers"
)

func TestSameClock(t *testing.T) {
	for off, want := range map[time.Duration]string{
		0: "", time.Minute: "", 24 * time.Hour: "24h0m0s behind that of lb", -24 * time.Hour: "24h0m0s ahead of that of lb",
	} {
		err := sameClock(time.Now().Add(off), "lb")
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v: got %v, want %q", off, err, want)
		}
	}
}

// options are of a join below a directory of the test's.
func options(t *testing.T) (Options, found) {
	dir := t.TempDir()
	o := Options{Server: "https://10.0.1.48:6443", Token: "abcdef.0123456789abcdef", Name: "w0", Files: DefaultFiles()}
	o.Files.KubeletDir, o.Files.CA, o.Files.Unit = filepath.Join(dir, "kubelet"), filepath.Join(dir, "pki", "ca.pem"), filepath.Join(dir, "kubelet.service")
	return o, found{ca: []byte("CA\n"), cluster: workers.Cluster{DNS: []string{"10.32.0.10"}, Domain: "cluster.local"}}
}

func TestPlan(t *testing.T) {
	o, f := options(t)
	p, err := plan(o, f)
	if err != nil {
		t.Fatal(err)
	}
	made, err := p.Write()
	if err != nil || len(made) != 4 {
		t.Fatalf("got %v, %v; want four files", made, err)
	}
	for _, file := range p.Files {
		secret := strings.Contains(string(file.Data), o.Token)
		if info, err := os.Stat(file.Path); err != nil || secret != (info.Mode().Perm() == 0o600) {
			t.Errorf("%s: got %v, %v; it has the token: %v", file.Path, info.Mode(), err, secret)
		}
	}

	t.Run("again", func(t *testing.T) {
		p, err := plan(o, f)
		if err != nil {
			t.Fatal(err)
		}
		if made, err := p.Write(); err != nil || len(made) != 0 {
			t.Errorf("got %v, %v; want the files kept", made, err)
		}
	})
	t.Run("other files", func(t *testing.T) {
		for _, of := range []func(Files) string{func(f Files) string { return f.CA }, func(f Files) string { return f.Unit }, Files.config} {
			o, f := options(t)
			target := of(o.Files)
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(target, []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := plan(o, f); err == nil || !strings.Contains(err.Error(), target+" exists, and is another file") {
				t.Errorf("%s: got %v", target, err)
			}
		}
	})
	t.Run("a node already", func(t *testing.T) {
		if err := os.WriteFile(o.Files.kubeconfig(), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := plan(o, f); err == nil || !strings.Contains(err.Error(), "a node already") {
			t.Errorf("got %v", err)
		}
	})
}

// A write that fails leaves nothing that it has made.
func TestWriteFails(t *testing.T) {
	o, f := options(t)
	p, err := plan(o, f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(o.Files.Unit, 0o755); err != nil { // the last of the files
		t.Fatal(err)
	}
	if made, err := p.Write(); err == nil || len(made) > 0 {
		t.Errorf("got %v, %v; want a failure", made, err)
	}
	for _, file := range p.Files[:3] {
		if _, err := os.Lstat(file.Path); err == nil {
			t.Errorf("%s is left", file.Path)
		}
	}
}

func TestFilesCheck(t *testing.T) {
	for name, change := range map[string]func(*Files){
		"relative":     func(f *Files) { f.CA = "ca.pem" },
		"space":        func(f *Files) { f.KubeletDir = "/var/lib/a b" },
		"percent":      func(f *Files) { f.Kubelet = "/opt/%n/kubelet" },
		"newline":      func(f *Files) { f.Unit = "/etc/x\n[Service]" },
		"cgroups":      func(f *Files) { f.CgroupDriver = "none" },
		"no address":   func(f *Files) { f.NodeIP = "w0" },
		"loopback":     func(f *Files) { f.NodeIP = "127.0.0.1" },
		"runtime":      func(f *Files) { f.Runtime = "tcp://1.2.3.4" },
		"no directory": func(f *Files) { f.KubeletDir = "" },
	} {
		f := DefaultFiles()
		change(&f)
		if f.check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := DefaultFiles().check(); err != nil {
		t.Error(err)
	}
}
