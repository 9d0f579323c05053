package status

import (
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kthwd/appliance/listening"
)

func TestStrangerIsNotBelieved(t *testing.T) {
	s := httptest.NewServer(answer(reports()["ready"]))
	defer s.Close()
	addr := strings.TrimPrefix(s.URL, "http://")
	c := Client{Socket: filepath.Join(t.TempDir(), "kthwd.sock"), Addr: addr, Anywhere: true, Owners: []int{os.Geteuid()}}
	if r, err := c.Status(t.Context()); err != nil || r.PID != 4711 {
		t.Errorf("a process of this user: got %+v, %v", r, err)
	}
	for name, addr := range map[string]string{"address": addr, "name": strings.Replace(addr, "127.0.0.1", "localhost", 1)} {
		c.Addr, c.Owners = addr, []int{os.Geteuid() + 1}
		r, err := c.Status(t.Context())
		var stranger *Stranger
		if !errors.As(err, &stranger) || !errors.Is(err, ErrNotRunning) {
			t.Fatalf("%s: got %+v, %v, want a stranger, and why it was asked", name, r, err)
		}
		self := listening.Socket{UID: os.Geteuid()}
		if want := "a process of the user " + self.User() + " listens on " + strings.TrimPrefix(s.URL, "http://") + " and is not believed"; stranger.Sentence() != want {
			t.Errorf("%s: got %q, want %q", name, stranger.Sentence(), want)
		}
	}
	c.Owners = nil
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("a server that the user named: %v", err)
	}
}

// Where nobody listens, nothing else is looked at: a completion of the shell would wait for it.
func TestNobodyListens(t *testing.T) {
	s := httptest.NewServer(nil)
	s.Close()
	_, err := dialBelieved(t.Context(), "tcp", s.Listener.Addr().String(), nil, func(int) ([]listening.Socket, error) {
		t.Error("all connections of the machine were read")
		return nil, nil
	})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want a connection that is refused", err)
	}
}

// A connection that was accepted by a socket that is gone now belongs to nobody known.
func TestSocketThatHasLeftIsNotBelieved(t *testing.T) {
	s := httptest.NewServer(nil)
	defer s.Close()
	conn, err := believing([]int{os.Geteuid()}).DialContext(t.Context(), "tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s.Listener.Close()
	var stranger *Stranger
	if err := believe(conn, nil, []int{os.Geteuid()}); !errors.As(err, &stranger) || len(stranger.Users) != 0 {
		t.Errorf("got %v, want a stranger without a user", err)
	}
}
