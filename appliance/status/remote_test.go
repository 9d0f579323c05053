package status

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadPassword(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{"battery": "battery", "battery\n": "battery", "battery\r\n": "battery", " a b \nmore": " a b "} {
		if got, err := ReadPassword(write(t, filepath.Join(dir, "p"), text, 0o600)); err != nil || got != want {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	for name, path := range map[string]string{
		"empty": write(t, filepath.Join(dir, "empty"), "\nbattery", 0o600), "open": write(t, filepath.Join(dir, "open"), "battery", 0o604), "missing": filepath.Join(dir, "missing"),
	} {
		if got, err := ReadPassword(path); err == nil || got != "" || strings.Contains(err.Error(), "battery") {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

// Printing a Client, in a log or while debugging, shows no password.
func TestLoginHidesItsPassword(t *testing.T) {
	c := Client{Addr: "127.0.0.1:1", Login: Login{User: "me", Password: "secret"}}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, c); strings.Contains(text, "secret") || !strings.Contains(text, "me") {
			t.Errorf("%s: got %s", format, text)
		}
	}
}

func TestWhereToAsk(t *testing.T) {
	me := Login{User: "me", Password: "secret"}
	for _, tt := range []struct {
		addr  string
		login Login
		want  string // or part of the error
	}{
		{"10.0.0.1:10300", Login{}, "http://10.0.0.1:10300/status"},
		{"https://10.0.0.1:10300/", me, "https://10.0.0.1:10300/status"},
		{":10300", me, "http://localhost:10300/status"},
		{"0.0.0.0:10300", me, "http://localhost:10300/status"},
		{"[::]:10300", Login{}, "http://localhost:10300/status"},
		{"[::1]:10300", me, "http://[::1]:10300/status"},
		{"127.0.0.2:10300", me, "http://127.0.0.2:10300/status"},
		{"10.0.0.1:10300", me, "unencrypted"},
		{"controller-0:10300", me, "unencrypted"},
		{"http://10.0.0.1:10300", me, "http://10.0.0.1:10300/status"}, // so it was said
		{"https://me:secret@10.0.0.1:10300", Login{}, "contains a user or a password"},
		{"me:secret@10.0.0.1:10300", me, "contains a user or a password"},
		{"unix:///run/x", Login{}, "is not an address"},
	} {
		u, err := Client{Addr: tt.addr, Login: tt.login}.url()
		got := fmt.Sprint(u)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) || err != nil && strings.Contains(got, "secret") {
			t.Errorf("%s: got %s, want %s", tt.addr, got, tt.want)
		}
	}
}
