package observe

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/status"
)

// made makes all the files of a controller in a new directory.
func made(t *testing.T) pki.Layout {
	t.Helper()
	l := pki.Layout{Dir: filepath.Join(t.TempDir(), "data")}
	if _, err := pki.Ensure(l, spec); err != nil {
		t.Fatal(err)
	}
	return l
}

var spec = pki.Spec{Addresses: []string{"10.0.0.11"}, Local: []string{"10.0.0.11"}, ServiceIP: net.IPv4(10, 32, 0, 1), Server: "https://10.0.0.11:6443"}

func filesOf(l pki.Layout) []File {
	return []File{
		{Path: l.CA(), Role: CA}, {Path: l.CAKey(), Role: Key},
		{Path: l.Cert(pki.NameKubernetes), Role: Certificate, Key: l.Key(pki.NameKubernetes)}, {Path: l.Key(pki.NameKubernetes), Role: Key},
		{Path: l.Cert(pki.NameServiceAccount), Role: TokenKeys}, {Path: l.Key(pki.NameServiceAccount), Role: TokenKey},
		{Path: l.EncryptionConfig(), Role: EncryptionKey}, {Path: l.AuditPolicy()}, {Path: l.Kubeconfig(pki.NameScheduler), Role: Kubeconfig},
		{Path: l.Key(pki.NameEtcdCA), Role: Spare},
	}
}

func TestFilesChange(t *testing.T) {
	l, other := made(t), made(t)
	f := newFiles(filesOf(l), func() error { _, err := pki.Check(l, spec); return err }, slog.New(slog.DiscardHandler))
	at := time.Date(2026, 1, 2, 2, 9, 0, 0, time.UTC)
	const clocked = " changed at 2026-01-02 02:09 UTC"

	for _, tt := range []struct {
		name  string
		paths []func(pki.Layout) string // taken from another cluster; nil for spoil
		spoil func(t *testing.T)
		want  []string // of all findings, in order: health and a part of the text
	}{
		{"nothing", nil, nil, nil},
		{"touched", nil, func(t *testing.T) { touch(t, l.CA()) }, nil},
		{"another CA", []func(pki.Layout) string{pki.Layout.CA}, nil,
			[]string{"degraded ca.pem" + clocked + " and is not the CA of kubernetes.pem, "}},
		{"another CA with its key", []func(pki.Layout) string{pki.Layout.CA, pki.Layout.CAKey}, nil,
			[]string{"degraded ca.pem" + clocked + " and is not the CA of ", "healthy ca-key.pem"}},
		{"another key", []func(pki.Layout) string{key(pki.NameKubernetes)}, nil,
			[]string{"degraded kubernetes-key.pem" + clocked + " and is not the key of kubernetes.pem"}},
		{"another pair", []func(pki.Layout) string{cert(pki.NameKubernetes), key(pki.NameKubernetes)}, nil,
			[]string{"degraded kubernetes.pem" + clocked + ": not signed by ca.pem", "healthy kubernetes-key.pem"}},
		{"another token key pair", []func(pki.Layout) string{cert(pki.NameServiceAccount), key(pki.NameServiceAccount)}, nil,
			[]string{"degraded service-account.pem" + clocked + " and lacks the key in use", "healthy service-account-key.pem"}},
		{"another encryption key", []func(pki.Layout) string{pki.Layout.EncryptionConfig}, nil,
			[]string{"degraded encryption-config.yaml" + clocked + " and lacks the key in use"}},
		{"another policy", nil, func(t *testing.T) { add(t, l.AuditPolicy(), "# mine\n") }, []string{"healthy audit-policy.yaml" + clocked}},
		{"a second CA", nil, func(t *testing.T) { add(t, l.CA(), contents(t, other.CA())) }, []string{"healthy ca.pem" + clocked}},
		{"gone", nil, func(t *testing.T) { remove(t, l.Kubeconfig(pki.NameScheduler)) },
			[]string{"degraded " + l.Kubeconfig(pki.NameScheduler) + " is gone since 2026-01-02 02:09 UTC"}},
		{"a key for everybody", nil, func(t *testing.T) { allow(t, l.CAKey(), 0o644) },
			[]string{"degraded the owner or the permissions of " + l.CAKey() + clocked + ", and the next start refuses it: readable or writable by group or others (mode 0644)"}},
		{"a key that no program reads for everybody", nil, func(t *testing.T) { allow(t, l.Key(pki.NameEtcdCA), 0o640) },
			[]string{"degraded the owner or the permissions of " + l.Key(pki.NameEtcdCA) + clocked}},
		{"other permissions that fit", nil, func(t *testing.T) { allow(t, l.CA(), 0o600); allow(t, l.CAKey(), 0o400) }, nil},
		{"a key that no program reads is elsewhere", nil, func(t *testing.T) { remove(t, l.Key(pki.NameEtcdCA)) }, nil},
		{"another key that no program reads", []func(pki.Layout) string{key(pki.NameEtcdCA)}, nil, []string{"degraded etcd-ca-key.pem" + clocked}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, modes := map[string]string{}, map[string]os.FileMode{}
			for _, file := range f.all {
				before[file.Path], modes[file.Path] = contents(t, file.Path), mode(t, file.Path)
			}
			for _, path := range tt.paths {
				write(t, path(l), contents(t, path(other)))
			}
			if tt.spoil != nil {
				tt.spoil(t)
			}
			f.compare(at)
			got := f.findings()
			if len(got) != len(tt.want) {
				t.Fatalf("findings = %+v; want %q", got, tt.want)
			}
			for i, want := range tt.want {
				if line := string(got[i].Health) + " " + got[i].Text; !strings.HasPrefix(line, want) || !got[i].Since.Equal(at) {
					t.Errorf("finding = %s; want %s", line, want)
				}
				if strings.Contains(want, "permissions") && !strings.HasPrefix(got[i].Do, "chmod 600 "+l.Dir) {
					t.Errorf("%s: do = %s", want, got[i].Do)
				}
			}
			noSecrets(t, f, l, other)
			for path, data := range before {
				if mode(t, path) == 0o400 {
					allow(t, path, 0o600)
				}
				write(t, path, data)
				allow(t, path, modes[path])
			}
			f.compare(at)
			if got := f.findings(); len(got) > 0 {
				t.Errorf("after the files were put back: %+v", got)
			}
		})
	}
}

// A file that cannot be read is not said to be gone: each kind of fault has its sentence and its
// remedy, also where the file's own inode is as before, and is forgotten when the file is back.
func TestFilesUnreadable(t *testing.T) {
	for _, tt := range []struct {
		name     string
		spoil    func(t *testing.T, path string) // with a file in path.old
		text, do string
	}{
		{"gone", func(*testing.T, string) {}, " is gone since ", "put the old policy.yaml back in "},
		{"the link's file is gone", func(t *testing.T, path string) { link(t, "nowhere", path) }, " is a link to a file that is not there since ", "put the old policy.yaml back in "},
		{"a directory", func(t *testing.T, path string) { check(t, os.Mkdir(path, 0o700)) }, " is a directory since ", "move policy.yaml away, "},
		{"a pipe", func(t *testing.T, path string) { check(t, unix.Mkfifo(path, 0o600)) }, " is no regular file since ", "move policy.yaml away, "},
		{"a device", func(t *testing.T, path string) { link(t, "/dev/null", path) }, " is no regular file since ", "move policy.yaml away, "},
		{"a loop of links", func(t *testing.T, path string) { link(t, path, path) }, " cannot be read since 2026-01-02 02:09 UTC (too many levels of symbolic links)", "look for errors of the disk"},
		{"an error of the disk", func(t *testing.T, path string) { link(t, "/proc/self/mem", path) }, " cannot be read since 2026-01-02 02:09 UTC (input/output error)", "look for errors of the disk with journalctl --dmesg"},
		{"too large", func(t *testing.T, path string) { check(t, os.WriteFile(path, make([]byte, fileLimit+1), 0o600)) }, " is too large ", "move policy.yaml away, "},
		{"for root only", func(t *testing.T, path string) { check(t, os.WriteFile(path, nil, 0)) }, " cannot be read since 2026-01-02 02:09 UTC (permission denied)", "namei -l "},
		{"in a directory for root only", func(t *testing.T, path string) { check(t, os.Chmod(filepath.Dir(path), 0)) }, " cannot be read since 2026-01-02 02:09 UTC (permission denied)", "namei -l "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := time.Date(2026, 1, 2, 2, 9, 0, 0, time.UTC)
			dir := filepath.Join(t.TempDir(), "d")
			for _, above := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
				check(t, os.Chmod(above, 0o755)) // for another user, below
			}
			check(t, os.Mkdir(dir, 0o755))
			path := filepath.Join(dir, "policy.yaml")
			check(t, os.WriteFile(path, []byte("mine\n"), 0o644))
			f := newFiles([]File{{Path: path}}, nil, slog.New(slog.DiscardHandler))
			check(t, os.Rename(path, path+".old"))
			tt.spoil(t, path)
			as := func(do func()) { do() }
			if strings.HasSuffix(tt.name, "for root only") {
				as = func(do func()) { asNobody(t, do) }
			}
			as(func() { f.compare(at); f.compare(at.Add(time.Minute)) })
			got := f.findings()
			if len(got) != 1 || got[0].Health != status.Degraded || got[0].Kind != kindMisfit || !got[0].Since.Equal(at) {
				t.Fatalf("got %+v, want one finding", got)
			}
			if !strings.HasPrefix(got[0].Text, path+tt.text) || !strings.HasSuffix(got[0].Text, ": what runs has read it, the next start cannot") || !strings.HasPrefix(got[0].Do, tt.do) {
				t.Errorf("got %+v, want %q and %q", got[0], path+tt.text, tt.do)
			}
			check(t, os.Chmod(dir, 0o755))
			check(t, os.RemoveAll(path))
			check(t, os.Rename(path+".old", path))
			as(func() { f.compare(at) })
			if got := f.findings(); len(got) > 0 {
				t.Errorf("after the file is back: %+v", got)
			}
		})
	}
}

// asNobody runs do with the rights of no user of this machine, if the test runs as root.
func asNobody(t *testing.T, do func()) {
	t.Helper()
	if os.Getuid() != 0 {
		do()
		return
	}
	runtime.LockOSThread() // the rights are those of a thread
	defer runtime.UnlockOSThread()
	check(t, unix.Setfsuid(65534))
	defer unix.Setfsuid(0)
	do()
}

func link(t *testing.T, to, path string) {
	t.Helper()
	check(t, os.Symlink(to, path))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A renewal fits, and counts as the content in use after a while.
func TestFileRenewed(t *testing.T) {
	l := made(t)
	f := newFiles(filesOf(l), func() error { _, err := pki.Check(l, spec); return err }, slog.New(slog.DiscardHandler))
	remove(t, l.Cert(pki.NameKubernetes))
	remove(t, l.Key(pki.NameKubernetes))
	if _, err := pki.Ensure(l, spec); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	f.compare(at)
	for _, got := range f.findings() {
		if got.Health != status.Healthy || !strings.HasSuffix(got.Text, ", and fits the other files") {
			t.Errorf("after a renewal: %+v", got)
		}
	}
	if n := len(f.findings()); n != 2 {
		t.Errorf("after a renewal: %d findings; want certificate and key", n)
	}
	f.compare(at.Add(noteFor))
	if got := f.findings(); len(got) > 0 {
		t.Errorf("an hour later: %+v", got)
	}
}

// An encryption key of which a program has found that it opens all that is stored is another
// one, and nothing is lost by it. One that comes after it is none of these.
func TestFileProven(t *testing.T) {
	l, other := made(t), made(t)
	w := &Watch{files: newFiles(filesOf(l), func() error { _, err := pki.Check(l, spec); return err }, slog.New(slog.DiscardHandler))}
	first, path := contents(t, l.EncryptionConfig()), l.EncryptionConfig()
	at := time.Now()
	for _, tt := range []struct {
		content string
		proven  bool
		want    string // health and a part of the text of the one finding; "" for none
	}{
		{contents(t, other.EncryptionConfig()), false, "degraded lacks the key in use"},
		{contents(t, other.EncryptionConfig()), true, "healthy fits the other files"},
		{contents(t, made(t).EncryptionConfig()), false, "degraded lacks the key in use"},
		{first, true, ""},
	} {
		write(t, path, tt.content)
		if tt.proven {
			w.Proven(path)
		}
		w.files.compare(at)
		health, text, _ := strings.Cut(tt.want, " ")
		switch got := w.files.findings(); {
		case tt.want == "" && len(got) == 0:
		case len(got) != 1 || string(got[0].Health) != health || !strings.Contains(got[0].Text, text):
			t.Errorf("got %+v, want %q", got, tt.want)
		}
	}
}

func TestFilesOf(t *testing.T) {
	all := FilesOf(map[string][]program.Arg{
		program.Etcd:              {{Key: "cert-file", Value: "/d/k.pem"}, {Key: "key-file", Value: "/d/k-key.pem"}, {Key: "trusted-ca-file", Value: "/d/ca.pem"}, {Key: "data-dir", Value: "/d/etcd"}},
		program.APIServer:         {{Key: "client-ca-file", Value: "/d/ca.pem"}, {Key: "service-account-key-file", Value: "/d/sa.pem"}, {Key: "runtime-config", Value: "api/all=true"}},
		program.ControllerManager: {{Key: "cluster-signing-cert-file", Value: "/d/ca.pem"}, {Key: "cluster-signing-key-file", Value: "/d/ca-key.pem"}, {Key: "authentication-kubeconfig", Value: "/d/x.kubeconfig"}},
	})
	want := "[{/d/sa.pem 4 } {/d/ca.pem 3 } {/d/k.pem 1 /d/k-key.pem} {/d/k-key.pem 2 } {/d/ca-key.pem 2 } {/d/x.kubeconfig 7 }]"
	if got := fmt.Sprint(all); got != want {
		t.Errorf("FilesOf = %s; want %s", got, want)
	}
}

// noSecrets looks for the bytes of every secret in all that is kept.
func noSecrets(t *testing.T, f *files, layouts ...pki.Layout) {
	t.Helper()
	var kept strings.Builder
	for _, c := range f.inUse {
		fmt.Fprintf(&kept, "%q", c.keys)
	}
	for _, c := range f.changes {
		text, _ := json.Marshal(c.finding)
		fmt.Fprintf(&kept, "%q %s", c.is.keys, text)
	}
	for _, l := range layouts {
		for line := range strings.Lines(contents(t, l.Key(pki.NameServiceAccount)) + contents(t, l.EncryptionConfig())) {
			if secret := strings.TrimSpace(line); len(secret) > 40 && !strings.HasPrefix(secret, "#") && strings.Contains(kept.String(), secret) {
				t.Errorf("%q is kept", secret)
			}
		}
	}
}

func cert(name string) func(pki.Layout) string {
	return func(l pki.Layout) string { return l.Cert(name) }
}
func key(name string) func(pki.Layout) string {
	return func(l pki.Layout) string { return l.Key(name) }
}

func contents(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func add(t *testing.T, path, data string) { write(t, path, contents(t, path)+data) }

func allow(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// mode is 0 for a file that is not there.
func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Mode().Perm()
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.Chtimes(path, time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
