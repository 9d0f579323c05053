package selfbackup

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"kthwd/appliance/etcd/dbcopy"
	"kthwd/appliance/etcd/embedded"
	"kthwd/appliance/status"
)

// TestOpenDatabase asks for a copy of a database over a socket: its size and the state of its store
// come first.
func TestOpenDatabase(t *testing.T) {
	o, err := embedded.OpenOffline(t.Context(), "c0", t.TempDir(), true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	none := errors.New("etcd has not started")
	started, copies := false, make(chan *dbcopy.Copy, 1)
	for pattern, handler := range Database(func() (*dbcopy.Copy, error) {
		if !started {
			return nil, none
		}
		c, err := dbcopy.NewCopy(o.Server.Backend())
		copies <- c
		return c, err
	}) {
		mux.HandleFunc(pattern, handler)
	}
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	client := status.Client{Socket: socket}
	if _, err := OpenDatabase(t.Context(), client); err == nil || err.Error() != none.Error() {
		t.Errorf("before the start: got %v", err)
	}
	started = true
	got, err := OpenDatabase(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	given := <-copies
	if got.Size != given.Size || got.Store != given.Store || got.Store.Revision == 0 {
		t.Errorf("got %d bytes, %+v, want %d, %+v", got.Size, got.Store, given.Size, given.Store)
	}
	data, err := io.ReadAll(got)
	if err != nil || int64(len(data)) != got.Size {
		t.Fatalf("got %d bytes, %v, want %d", len(data), err, got.Size)
	}
	body := data[:len(data)-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], data[len(body):]) {
		t.Error("its sum is another")
	}
}
