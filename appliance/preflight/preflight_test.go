package preflight

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestVerdicts(t *testing.T) {
	dir := t.TempDir()
	future := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(future, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := os.Chtimes(future, now, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		got  Result
		want Verdict
		text string
	}{
		{"little memory", Memory(256 << 20), Fail, "384 MiB"},
		{"some memory", Memory(512 << 20), Warn, "1.0 GiB"},
		{"memory", Memory(8 << 30), OK, ""},
		{"a clock before a file", Clock(now, future), Fail, "set it"},
		{"a clock at its beginning", Clock(time.Unix(0, 0), ""), Fail, "set it"},
		{"an address of another machine", Address("advertise-address", "192.0.2.1"), Fail, "correct advertise-address"},
		{"loopback", Address("advertise-address", "127.0.0.1"), Warn, "no other machine"},
		{"all addresses", Address("bind-address", "0.0.0.0"), OK, ""},
		{"an old systemd", judgeSystemd("systemd 241 (241)\n+PAM"), Warn, "too old"},
		{"a systemd", judgeSystemd("systemd 252 (252.38-1~deb12u1)"), OK, ""},
		{"a systemd of Fedora", judgeSystemd("systemd 256.1-1.fc41 ()"), OK, ""},
		{"a disk", Sync(dir), "", ""},
	} {
		if tt.want != "" && tt.got.Verdict != tt.want || !strings.Contains(tt.got.Do, tt.text) {
			t.Errorf("%s: got %+v, want %s with %q", tt.name, tt.got, tt.want, tt.text)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	if r := Directory(filepath.Join(dir, "not", "there")); r.Verdict == Fail || !strings.HasPrefix(r.Found, dir+":") {
		t.Errorf("one that would be made: got %+v", r)
	}
	if os.Getuid() == 0 {
		t.Skip("root may write everywhere")
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if r := Directory(dir); r.Verdict != Fail {
		t.Errorf("one that cannot be written: got %+v", r)
	}
}
