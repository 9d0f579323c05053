package status

import (
	"net/http"
	"os"
	"testing"
)

// A page of a foreign site that has its name resolve to 127.0.0.1 reads nothing.
func TestForeignHostOnLoopback(t *testing.T) {
	addr := free(t)
	start(t, ServerConfig{Address: addr, Report: func() Report { return reports()["lb"] }})
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]int{
		"": 200, addr: 200, "127.0.0.1": 200, "[::1]:10300": 200, "192.0.2.1": 200, "localhost": 200, "LOCALHOST.:10300": 200, "kthwd.localhost:80": 200, own + ":10300": 200,
		"rebind.example:10300": 421, "localhost.example": 421, "127.0.0.1.example:10300": 421, "[::1].example": 421,
	} {
		for _, path := range []string{"/", "/status.json", "/metrics", "/readyz"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("Host %q, %s: got %d, want %d", host, path, resp.StatusCode, want)
			}
			if h := resp.Header; h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: header %v", path, h)
			}
		}
	}
}
