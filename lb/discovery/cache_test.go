package discovery

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	discoveryv1 "k8s.io/api/discovery/v1"
)

type slicePointer = discoveryv1.EndpointSlice

func hasLabel(m prometheus.Metric, value string) bool {
	var out dto.Metric
	if m.Write(&out) != nil {
		return false
	}
	for _, l := range out.Label {
		if l.GetValue() == value {
			return true
		}
	}
	return false
}

// wantCache compares the content of the file, and holds that its directory has no other
// file.
func wantCache(t *testing.T, path, want string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || string(data) != want {
		t.Errorf("cache: got %q, %v; want %q", data, err, want)
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) != 1 {
		t.Errorf("beside the cache: %v, %v", files, err)
	}
}

func TestCache(t *testing.T) {
	s := newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.2", "127.9.1.1"))
	path := filepath.Join(t.TempDir(), "cache")
	kubeconfig := s.kubeconfig()
	f := make_(t, Config{Kubeconfig: kubeconfig, Cache: path})
	if got := f.Last(); len(got) != 0 {
		t.Errorf("without a file: got %v", got)
	}
	f.run()
	f.want("127.9.1.1:6443,127.9.1.2:6443")
	<-s.opened // the list before it is done with
	wantCache(t, path, `{"backends":["127.9.1.1:6443","127.9.1.2:6443"]}`+"\n")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
	s.put(slice("kubernetes", "fd00::1"))
	f.want("[fd00::1]:6443")
	f.Stop()
	wantCache(t, path, `{"backends":["[fd00::1]:6443"],"former":["127.9.1.1:6443","127.9.1.2:6443"]}`+"\n")

	// The next process has it before a server answers, and does not write it again.
	info, _ = os.Stat(path)
	f = follow(t, Config{Kubeconfig: kubeconfig, Cache: path})
	<-f.First()
	if got := f.Last(); len(got) != 1 || got[0] != "[fd00::1]:6443" {
		t.Errorf("from the cache: got %v", got)
	}
	<-s.opened
	f.wantNone()
	if again, err := os.Stat(path); err != nil || !os.SameFile(info, again) {
		t.Errorf("written without a change: %v", err)
	}
}

func TestBadCache(t *testing.T) {
	s := newAPIServer(t)
	s.put(slice("kubernetes", "127.9.1.1"))
	for name, text := range map[string]string{
		"empty": "", "no JSON": "{", "another JSON": `["127.9.1.1:6443"]`, "no backend": `{"backends":[]}`,
		"no address": `{"backends":["127.9.1.1:6443","example.com:6443"]}`, "no port": `{"backends":["127.9.1.1"]}`, "port 0": `{"backends":["127.9.1.1:0"]}`,
		"large": strings.Repeat(" ", maxCache) + "x",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cache")
			write(t, path, text)
			f := follow(t, Config{Kubeconfig: s.kubeconfig(), Cache: path})
			if n := f.log.Count("WARN", path); n != 1 {
				t.Errorf("got %d warnings, want one with the file:\n%s", n, f.log)
			}
			f.want("127.9.1.1:6443")
			f.says("following")
			wantCache(t, path, `{"backends":["127.9.1.1:6443"]}`+"\n")
		})
	}
}

// A cache that cannot be written is logged once, affects nothing else, and is written
// once that is possible.
func TestCacheNotWritten(t *testing.T) {
	s := newAPIServer(t)
	full := func(path string) (*os.File, error) {
		f, err := createBeside(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		fd, err := syscall.Open("/dev/full", syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
		return os.NewFile(uintptr(fd), f.Name()), err
	}
	for name, tt := range map[string]struct {
		path   string // below a directory
		create func(string) (*os.File, error)
		want   error
	}{
		"directory is missing":   {"a/cache", createBeside, syscall.ENOENT},
		"a directory in its way": {"", createBeside, nil},
		"disk is full":           {"cache", full, syscall.ENOSPC},
	} {
		t.Run(name, func(t *testing.T) {
			s.put(slice("kubernetes", "127.9.1.1"))
			dir := t.TempDir()
			path := filepath.Join(dir, tt.path)
			f := make_(t, Config{Kubeconfig: s.kubeconfig(), Cache: path})
			f.cache.create = tt.create
			f.run()
			f.want("127.9.1.1:6443")
			<-f.Ready
			s.put(slice("kubernetes", "127.9.1.2"))
			f.want("127.9.1.2:6443")
			s.put(slice("kubernetes", "127.9.1.3"))
			f.want("127.9.1.3:6443")
			f.Stop()
			if n := f.log.Count("WARN", "list of backends not cached"); n != 1 {
				t.Errorf("said %d times, want once", n)
			}
			if tt.want != nil && f.log.Count("WARN", tt.want.Error()) != 1 {
				t.Errorf("not said why: want %v", tt.want)
			}
			if tt.path == "" {
				return
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			f.cache.create = createBeside
			if complaint, err := f.cache.write(cached{Backends: []string{"127.9.1.3:6443"}}); err != nil || complaint != "" {
				t.Errorf("later: got %q, %v", complaint, err)
			}
			if list, err := (&cache{path: path}).read(); err != nil || len(list.Backends) != 1 {
				t.Errorf("later: got %v, %v", list, err)
			}
		})
	}
}

// A crash while it is written leaves the old list.
func TestCacheIsReplacedAsAWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	c := cache{path: path, create: createBeside}
	if _, err := c.write(cached{Backends: []string{"127.9.1.1:6443"}}); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no")
	c.create = func(string) (*os.File, error) { return nil, broken }
	if complaint, err := c.write(cached{Backends: []string{"127.9.1.2:6443"}}); !errors.Is(err, broken) || complaint != path+": no" {
		t.Errorf("got %q, %v", complaint, err)
	}
	wantCache(t, path, `{"backends":["127.9.1.1:6443"]}`+"\n")
}

func TestFormer(t *testing.T) {
	c := cached{}
	for _, step := range []struct{ list, want string }{
		{"a b c", ""},
		{"a b", "c"},
		{"b", "a c"},
		{"b c", "a"},
		{"d e f g h i j k l", "b c a"},
		{"a", "d e f g h i j k"},
	} {
		c = c.followedBy(strings.Fields(step.list))
		if got := strings.Join(c.Former, " "); got != step.want || strings.Join(c.Backends, " ") != step.list {
			t.Errorf("after %s: got %s, want %s", step.list, got, step.want)
		}
	}
}
