package workdir

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"kthwd/test/harness"
)

// What is left of a process that has died goes; a link in its place is not followed. Before, root
// emptied every directory that had a file called lock and a link of that name in DIR.
func TestLeftoversAreThisUsersDirectories(t *testing.T) {
	in := t.TempDir()
	dir, victim := filepath.Join(in, "backups"), filepath.Join(in, "victim")
	sibling := filepath.Join(dir, "sibling")
	left := filepath.Join(dir, Prefix+"left")
	for _, d := range []string{victim, sibling, left} {
		must(t, errors.Join(os.MkdirAll(d, 0o700), os.WriteFile(filepath.Join(d, lockName), nil, 0o600), os.WriteFile(filepath.Join(d, "precious"), nil, 0o600)))
	}
	must(t, errors.Join(
		os.Symlink(victim, filepath.Join(dir, Prefix+"away")), os.Symlink("sibling", filepath.Join(dir, Prefix+"beside")),
		os.Mkdir(filepath.Join(dir, Prefix+"fifo"), 0o700), syscall.Mkfifo(filepath.Join(dir, Prefix+"fifo", lockName), 0o600),
		os.Mkdir(filepath.Join(dir, Prefix+"begins"), 0o700),
		os.Symlink(victim, filepath.Join(left, "link")),
	))
	s, err := New(dir)
	must(t, err)
	must(t, os.WriteFile(s.Database(), nil, 0o600))
	s.Remove()
	for _, d := range []string{victim, sibling} {
		if _, err := os.Stat(filepath.Join(d, "precious")); err != nil {
			t.Errorf("a link was followed: %v", err)
		}
	}
	for _, d := range []string{left, s.Path, filepath.Join(dir, Prefix+"begins")} {
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s is left", d)
		}
	}
}

// Where others can exchange files, no process works.
func TestStageOpenToOthers(t *testing.T) {
	dir := t.TempDir()
	for mode, refusal := range map[os.FileMode]string{0o700: "", 0o755: "", 0o777: "writable by group or others", 0o770: "writable by group or others", 0o777 | os.ModeSticky: ""} {
		must(t, os.Chmod(dir, mode))
		s, err := New(dir)
		harness.CheckRefusal(t, err, refusal, "chmod go-w "+dir)
		if err == nil {
			s.Remove()
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
