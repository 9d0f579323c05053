package etcdgateway

import (
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
)

// A stopping member gets no new connection. test/attack calls the gateway of a real one.
func TestClosed(t *testing.T) {
	(*Gateway)(nil).Close()
	g := New(filepath.Join(t.TempDir(), "etcd.sock"))
	g.Close()
	answer := httptest.NewRecorder()
	g.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v3/kv/range", nil))
	if answer.Code != http.StatusServiceUnavailable {
		t.Errorf("got status %d, want %d", answer.Code, http.StatusServiceUnavailable)
	}
}
