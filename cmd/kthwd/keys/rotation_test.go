package keys

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/status"
	"kthwd/cmd/kthwd/cli"
)

// refusal is the error of a verb that a running kthwd has refused.
func refusal(t *testing.T, code int, reason string) error {
	t.Helper()
	dir, err := os.MkdirTemp("", "kthwd") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		status.Refuse(w, code, advice.With(errors.New(reason), "a hint"))
	})}
	defer server.Close()
	go func() { _ = server.Serve(l) }()
	return status.Client{Socket: socket}.Do(t.Context(), http.MethodPost, "/", nil, nil)
}

// A verb that comes too early is tried again as long as it may be, and no longer; one that is refused
// for another reason is not.
func TestPatiently(t *testing.T) {
	early, wrong := refusal(t, status.TooEarly, "c1 has watched since noon only"), refusal(t, http.StatusConflict, "wrong")
	for _, tt := range []struct {
		name    string
		answers []error // the last one stays
		wait    time.Duration
		tries   int
		want    error
		said    int
	}{
		{"at once", []error{nil}, time.Hour, 1, nil, 0},
		{"not waited for", []error{early}, 0, 1, early, 0},
		{"after a while", []error{early, early, nil}, time.Hour, 3, nil, 1},
		{"never", []error{early}, time.Minute, 7, early, 1},
		{"for an hour", []error{early}, time.Hour, 361, early, 6},
		{"for another reason", []error{early, wrong}, time.Hour, 2, wrong, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				tries := 0
				err := (&app{&cli.App{Err: &out}}).patiently(t.Context(), tt.wait, func() error {
					tries++
					return tt.answers[min(tries, len(tt.answers))-1]
				})
				if !errors.Is(err, tt.want) || tries != tt.tries {
					t.Errorf("got %v after %d tries, want %v after %d", err, tries, tt.want, tt.tries)
				}
				if got := strings.Count(out.String(), "waits  c1 has watched since noon only\n"); got != tt.said {
					t.Errorf("said %d times, want %d:\n%s", got, tt.said, &out)
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&app{&cli.App{Err: &bytes.Buffer{}}}).patiently(ctx, time.Hour, func() error { return early }); err == nil || !strings.Contains(err.Error(), "interrupted, and nothing has changed: c1 has watched") {
		t.Errorf("interrupted: got %v", err)
	}
}
