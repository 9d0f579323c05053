package paths

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProblem(t *testing.T) {
	for _, tt := range []struct{ path, want string }{
		{"/var/lib/kubernetes", ""},
		{"", ""},
		{"/srv/k8s#1,2;\"3\" %41?x=$y&'z'`w`*[ä]\\|:=@!~", ""},
		{"/srv/" + strings.Repeat("n", 255), ""},
		{"/srv/\xff", "UTF-8"},
		{"/srv/a\nb", "control"},
		{"/srv/a\x1b[31m", "control"},
		{"/srv/" + strings.Repeat("n", 256), "a name of 256 bytes"},
		{strings.Repeat("/nnn", 1000), "has 4000 bytes"},
	} {
		got := Problem(tt.path)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%.80q: got %q, want %q", tt.path, got, tt.want)
		}
	}
}

// TestPlain walks through all bytes: none that has a meaning in a URL, a list or a
// shell may pass.
func TestPlain(t *testing.T) {
	passed := ""
	for b := range 256 {
		if Plain("/srv/" + string([]byte{byte(b)})) {
			passed += string([]byte{byte(b)})
		}
	}
	if want := "-./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"; passed != want {
		t.Errorf("got %q, want %q", passed, want)
	}
}

func TestRemoveSocket(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, dir} {
		if err := RemoveSocket(path); !errors.Is(err, ErrNotSocket) {
			t.Errorf("%s: got %v, want %v", path, err, ErrNotSocket)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 { // the second time it is gone already
		if err := RemoveSocket(socket); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket: got %v, want %v", err, os.ErrNotExist)
	}
}
