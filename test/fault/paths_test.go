package fault

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// TestDataDirOfAnyName runs kthwd in directories whose names mean something in a URL, in
// a list with commas, in a format and in a shell. A part of each name, up to such a
// character, is a file of somebody else: etcd once removed it to make its socket there.
func TestDataDirOfAnyName(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, dir string }{
		{"fragment", "k8s#1"},
		{"list", `a,"b`},
		{"all", `k8s?x= %41%s;$HOME:&'q'*[1]~\n|<é>@!` + "`id`"},
		{"long", strings.Repeat("long", 60)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kthwtest.Turn(t, 1)
			parent := t.TempDir()
			var others []string
			for i := range len(tt.dir) {
				if strings.ContainsRune("#?,\" %;", rune(tt.dir[i])) {
					other := filepath.Join(parent, tt.dir[:i])
					others = append(others, other)
					if err := os.WriteFile(other, []byte("x"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			c := kthwtest.Start(t, kthwtest.Options{Dir: filepath.Join(parent, tt.dir)})
			if code, out := verb(t, c, "status"); code != 0 {
				t.Errorf("kthwd status: exit code %d\n%s", code, out)
			}
			for _, socket := range []string{"etcd.sock", "kthwd.sock"} {
				if info, err := os.Lstat(filepath.Join(c.Dir, "run", socket)); err != nil || info.Mode().Type() != os.ModeSocket {
					t.Errorf("%s: got %v, %v, want a socket", socket, info, err)
				}
			}
			namesKubeconfig(t, c)
			stop(t, c, syscall.SIGTERM, 0)
			for _, other := range others {
				if data, err := os.ReadFile(other); err != nil || string(data) != "x" {
					t.Errorf("%s: got %q, %v, want it as it was", other, data, err)
				}
			}
			left, err := os.ReadDir(parent)
			if err != nil || len(left) != len(others)+1 {
				t.Errorf("beside the data directory: got %v, %v, want the %d files that were there", left, err, len(others))
			}
		})
	}
}

// namesKubeconfig gives the words of the kubectl line that kthwd printed to a real shell.
func namesKubeconfig(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	_, line, found := strings.Cut(c.Log.String(), "/kthwd kubectl ")
	line, _, _ = strings.Cut(line, "\n")
	out, err := exec.CommandContext(t.Context(), "sh", "-c", `printf '%s\n' `+line).Output()
	if want := "--data-dir=" + c.Dir + "\nget\nnodes\n"; !found || err != nil || string(out) != want {
		t.Errorf("the shell reads %q of %q, %v, want %q", out, line, err, want)
	}
}

// TestPathRefused: a path that cannot be used is refused before anything is made.
func TestPathRefused(t *testing.T) {
	kthwtest.Turn(t, 1)
	for _, tt := range []struct{ name, dir, want string }{
		{"bytes", "a\xff", "is not UTF-8"},
		{"lines", "a\nb", "control character"},
		{"name", strings.Repeat("n", 256), "a name of 256 bytes"},
		{"length", strings.Repeat("n/", 2000) + "n", "bytes: want 3800 at most"},
	} {
		parent := t.TempDir()
		a := attempt{dir: filepath.Join(parent, tt.dir), ports: kthwtest.FreePorts(t, "127.0.0.1")}
		a.run(t).check(t, 2, "choose another path", "--data-dir", tt.want)
		if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
			t.Errorf("%s: got %v, %v, want nothing made", tt.name, left, err)
		}
	}
}

// TestNothingButASocketIsRemoved points each socket that kthwd or etcd makes at a file of
// somebody else.
func TestNothingButASocketIsRemoved(t *testing.T) {
	kthwtest.Turn(t, 1)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil { // as the status socket wants it
		t.Fatal(err)
	}
	file := filepath.Join(dir, "k8s")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	port, err := kthwtest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	controller := newAttempt(t)
	metrics := func(url string) func() outcome {
		return func() outcome {
			controller.args = []string{"--etcd-arg=listen-metrics-urls=" + url}
			return controller.run(t)
		}
	}
	balancer := func(more ...string) func() outcome {
		return func() outcome {
			return runToEnd(t, nil, append([]string{"--role=lb", "--config=", "--metrics-address=", "--check=none",
				"--backend=127.0.0.1:1", fmt.Sprintf("--listen=127.0.0.1:%d", port)}, more...)...)
		}
	}
	for _, tt := range []struct {
		name string
		run  func() outcome
		code int
		want string
	}{
		{"etcd's metrics", metrics("unix://" + file), 2, "exists and is not a socket"},
		{"etcd's metrics, cut off", metrics("unix://" + file + "#1"), 2, "its path ends before the # or ?"},
		{"etcd's metrics, with a query", metrics("unix://" + file + "?1"), 2, "its path ends before the # or ?"},
		{"status", balancer("--status-socket=" + file), 1, "exists and is not a socket"},
		{"upgrade", balancer("--status-socket=", "--upgrade-socket="+file), 1, "exists and is not a socket"},
	} {
		if o := tt.run(); o.code != tt.code || !strings.Contains(o.stderr, tt.want) {
			t.Errorf("%s: got exit code %d, want %d and %q:\n%s", tt.name, o.code, tt.code, tt.want, o.stderr)
		}
		if data, err := os.ReadFile(file); err != nil || string(data) != "x" {
			t.Fatalf("%s: got %q, %v, want the file as it was", tt.name, data, err)
		}
	}
}
