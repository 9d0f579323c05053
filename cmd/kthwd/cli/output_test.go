package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"testing"
	"unicode"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
)

func TestReport(t *testing.T) {
	two := errors.Join(
		&config.Problem{Key: "secure-port", Text: "0 is no port"},
		&config.Problem{Key: "data-dir", Text: "is empty", Hint: "give one"},
	)
	tests := []struct {
		name string
		err  error
		code int
		want string
	}{
		{name: "none"},
		{"plain", errors.New("etcd: no such thing"), 1, "kthwd: error: etcd: no such thing\n"},
		{"port in use", fmt.Errorf("etcd: %w", &net.OpError{Op: "listen", Net: "tcp", Err: syscall.EADDRINUSE}), 1,
			"kthwd: error: etcd: listen tcp: address already in use\nkthwd: hint: another program listens there: find it with ss -ltnp, or choose another port\n"},
		{"permission", &fs.PathError{Op: "mkdir", Path: "/x", Err: syscall.EACCES}, 1,
			"kthwd: error: mkdir /x: permission denied\nkthwd: hint: run as the user the files belong to, or choose a directory of your own with --data-dir\n"},
		{"misfit", &pki.Misfit{File: "a.pem", Problem: "is not signed by", Other: "ca.pem", Hint: "copy it"}, 1,
			"kthwd: error: a.pem is not signed by ca.pem\nkthwd: hint: copy it\n"},
		{"own hint first", advice.With(syscall.EADDRINUSE, "use --secure-port"), 1, "kthwd: error: address already in use\nkthwd: hint: use --secure-port\n"},
		{"usage", Usagef("unknown verb %q", "x"), 2, "kthwd: error: unknown verb \"x\"\n"},
		{"several", two, 2, "kthwd: error: --secure-port 0 is no port\nkthwd: error: --data-dir is empty\nkthwd: hint: give one\n"},
		{"joined twice", errors.Join(errors.Join(two), errors.New("x")), 2,
			"kthwd: error: --secure-port 0 is no port\nkthwd: error: --data-dir is empty\nkthwd: hint: give one\nkthwd: error: x\n"},
		{"the same hint once", errors.Join(syscall.EROFS, fmt.Errorf("x: %w", syscall.EROFS)), 1,
			"kthwd: error: read-only file system\nkthwd: hint: the file system is mounted read-only\nkthwd: error: x: read-only file system\n"},
		{"two causes in a sentence", fmt.Errorf("%w: %w", status.ErrNotRunning, syscall.ECONNREFUSED), 1,
			"kthwd: error: kthwd is not running: connection refused\nkthwd: hint: start it with kthwd --role=controller or --role=lb (a service: systemctl status kthwd-controller kthwd-lb), or name a controller's data directory with --data-dir\n"},
		{"lines", errors.New("one\n\ttwo\n"), 1, "kthwd: error: one; two\n"},
		{"degraded", ErrDegraded, 1, ""},
		{"down", ErrDown, 2, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			code := (&App{Err: &out}).Report(tt.err)
			if got := out.String(); code != tt.code || !sameButMisfit(got, tt.want) {
				t.Errorf("got code %d and\n%swant %d and\n%s", code, got, tt.code, tt.want)
			}
		})
	}
}

// sameButMisfit ignores the wording of a misfit, which belongs to package pki.
func sameButMisfit(got, want string) bool {
	if strings.HasPrefix(want, "kthwd: error: a.pem") {
		return strings.HasPrefix(got, "kthwd: error: ") && strings.Contains(got, "ca.pem") && strings.HasSuffix(got, "\nkthwd: hint: copy it\n")
	}
	return got == want
}

// A name from elsewhere in JSON neither moves a terminal's cursor nor hides text, and is the same for a program.
func TestJSONIsPrintable(t *testing.T) {
	in := map[string]string{"name": "a\x1b[2J\x7f\u009b31m\u202e\u200b\u2066 <é> 漢 \U000e0001\U0001f600 \"\\"}
	var out bytes.Buffer
	if err := WriteJSON(&out, in); err != nil {
		t.Fatal(err)
	}
	for _, r := range out.String() {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%U is in %q", r, out.String())
		}
	}
	var back map[string]string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back["name"] != in["name"] {
		t.Errorf("got %q, %v; want %q", back["name"], err, in["name"])
	}
	for _, kept := range []string{"é", "漢", "\U0001f600"} {
		if !strings.Contains(out.String(), kept) {
			t.Errorf("%q is escaped: %s", kept, out.String())
		}
	}
}
