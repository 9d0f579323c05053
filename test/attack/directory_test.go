package attack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/appliance/archive"
	"kthwd/appliance/member"
	"kthwd/test/kthwtest"
)

const stranger = 65534 // any user but root

// verbs are the command lines that write into the data directory, which is that of the backups,
// too. None needs a network.
func verbs(t *testing.T, dir string) map[string][]string {
	start := kthwtest.Controller{Dir: dir, Address: "127.0.0.1", Ports: kthwtest.FreePorts(t, "127.0.0.1")}
	token := member.Token{ID: "a1b2c3d4e5f6", Secret: make([]byte, 16), Addresses: []string{"127.0.0.1:1"}}
	all := map[string][]string{
		"start":   start.Args(),
		"init":    {"pki", "init", "--advertise-address=127.0.0.1", "--data-dir=" + dir},
		"cluster": {"pki", "init", "--config=", "--controllers=c0=10.77.1.1,c1=10.77.1.2", "--out=" + dir},
		"join":    {"join", token.String(), "--data-dir=" + dir},
		"recover": {"etcd", "recover", "--data-dir=" + dir},
		"renew":   {"pki", "renew", "--config=", "--data-dir=" + dir},
		"address": {"member", "address", "127.0.0.2", "--config=", "--data-dir=" + dir},
		"create":  {"backup", "create", "--config=", "--data-dir=" + dir, "--dir=" + dir},
		"prune":   {"backup", "prune", "--config=", "--dir=" + dir},
		"verify":  {"backup", "verify", anArchive(t, dir)},
		"restore": {"backup", "restore", anArchive(t, filepath.Dir(dir)), "--yes", "--config=", "--data-dir=" + dir, "--advertise-address=127.0.0.1"},
	}
	if reviewed {
		maps.DeleteFunc(all, func(name string, _ []string) bool {
			return !slices.Contains([]string{"start", "init", "join", "recover"}, name)
		})
	}
	return all
}

// anArchive makes an archive in a directory, unless there is one, or no directory.
func anArchive(t *testing.T, dir string) string {
	t.Helper()
	v := versions(t)
	database := make([]byte, 1<<10)
	m := archive.Manifest{
		Format: archive.Format, Created: time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC), Kthwd: "v0.1.0-dev", Kubernetes: v.Kubernetes, Etcd: v.Etcd,
		Name: "c0", Cluster: "f5b3f7d8d797cc5f", Member: "1", Files: []archive.File{archive.NewFile(archive.Database, database, 0o600, true)},
	}
	path := filepath.Join(dir, archive.Name(m))
	err := archive.Write(path, m, func(string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(database)), nil }, nil)
	if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return path
}

// tree is every name, mode and content below dir.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if content = string(data); len(data) > 1<<10 {
				content = fmt.Sprintf("%d bytes, %x", len(data), sha256.Sum256(data))
			}
		}
		fmt.Fprintf(&all, "%s %v %q\n", path, info.Mode(), content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// trap is a data directory with links that lead to files and a directory of the victim.
func trap(t *testing.T, in string) (dir string) {
	t.Helper()
	dir = filepath.Join(in, "data")
	wal := filepath.Join(dir, "etcd", "member", "wal")
	victim := filepath.Join(in, "victim")
	for _, path := range []string{wal, victim} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kthwd.lock", "kthwd.join", "instance-id", "audit.log", ".member.json.new", "ca.pem"} {
		file := filepath.Join(victim, name)
		if err := os.WriteFile(file, []byte("the victim's"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(file, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"run": victim, ".kthwd-backup-1": victim} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// refusal bounds the time until a command has been refused.
var refusal = map[bool]time.Duration{false: 2 * time.Minute, true: 20 * time.Second}[reviewed]

// wantRefused runs kthwd, which must fail with all of the parts in its output and change
// nothing below the directory.
func wantRefused(t *testing.T, in string, args []string, parts ...string) {
	t.Helper()
	before := tree(t, in)
	ctx, cancel := context.WithTimeout(t.Context(), refusal) // a start that is not refused runs
	defer cancel()
	out, err := exec.CommandContext(ctx, kthwtest.Binary(t), args...).CombinedOutput()
	if err == nil || ctx.Err() != nil {
		t.Errorf("not refused:\n%s", out)
	}
	said := strings.ReplaceAll(string(out), kthwtest.Binary(t), "kthwd") // which is not in PATH here
	for _, part := range parts {
		if !strings.Contains(said, part) {
			t.Errorf("%q is not in the output:\n%s", part, out)
		}
	}
	if after := tree(t, in); after != before {
		t.Errorf("changed; before:\n%s\nafter:\n%s", before, after)
	}
}

// The user kthwd, to whom the data directory belongs, puts links into it and waits for root
// to run a verb there. Before, root emptied kthwd.lock's target, overwrote kthwd.join's and
// changed the mode of run's.
func TestRootFollowsNoLinksOfTheDirectorysOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have files of two users")
	}
	in := t.TempDir()
	dir := trap(t, in)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, stranger, stranger)
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range verbs(t, dir) {
		t.Run(name, func(t *testing.T) {
			wantRefused(t, in, args, dir+" belongs to the user ", "hint: run this as that user: ", " -- kthwd "+args[0])
			if name == "join" {
				out, _ := exec.CommandContext(t.Context(), kthwtest.Binary(t), args...).CombinedOutput()
				if strings.Contains(string(out), args[1]) {
					t.Errorf("the token is in the output:\n%s", out)
				}
			}
		})
	}
}

// Etcd's directory alone belongs to somebody else.
func TestEtcdDirectoryOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have files of two users")
	}
	in := t.TempDir()
	dir, etcd := filepath.Join(in, "data"), filepath.Join(in, "etcd")
	if err := os.Mkdir(etcd, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(etcd, stranger, stranger); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, in, append(verbs(t, dir)["start"], "--etcd-data-dir="+etcd), etcd+" belongs to the user ")
}

// Links that are left from an earlier owner of the directory are not followed either.
func TestLinksInAnOwnDirectory(t *testing.T) {
	in := t.TempDir()
	dir := trap(t, in)
	for _, name := range []string{"start", "join", "recover"} {
		t.Run(name, func(t *testing.T) {
			wantRefused(t, in, verbs(t, dir)[name], filepath.Join(dir, "kthwd.lock")+" is a symbolic link")
		})
	}
}

// Upstream opens the audit logs, and follows a link in their place.
func TestLinkInPlaceOfAnAuditLog(t *testing.T) {
	for _, name := range []string{"audit.log", "audit-unauthenticated.log"} {
		in := t.TempDir()
		dir, victim := filepath.Join(in, "data"), filepath.Join(in, "victim")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(victim, []byte("the victim's"), 0o600), os.Symlink(victim, filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, in, verbs(t, dir)["start"], filepath.Join(dir, name)+" is a symbolic link")
	}
}

// Before, run/ was followed, and its target received the mode 0700, sockets and keys.
func TestLinkInPlaceOfTheRunDirectory(t *testing.T) {
	in := t.TempDir()
	dir, victim := filepath.Join(in, "data"), filepath.Join(in, "victim")
	for _, path := range []string{dir, victim} {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(victim, filepath.Join(dir, "run")); err != nil {
		t.Fatal(err)
	}
	before := tree(t, victim)
	ctx, cancel := context.WithTimeout(t.Context(), refusal)
	defer cancel()
	out, err := exec.CommandContext(ctx, kthwtest.Binary(t), verbs(t, dir)["start"]...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), filepath.Join(dir, "run")+" is a symbolic link") {
		t.Errorf("got %v:\n%s", err, out)
	}
	if after := tree(t, victim); after != before {
		t.Errorf("changed; before:\n%s\nafter:\n%s", before, after)
	}
}

// In a directory that others can write to, they can put links and keys of their own; before,
// the CA's key was made there after a warning, and under a sticky bit without one.
func TestDirectoryOpenToOthers(t *testing.T) {
	for _, mode := range []os.FileMode{0o777, 0o777 | os.ModeSticky, 0o770, 0o702} {
		in := t.TempDir()
		dir, fresh := filepath.Join(in, "data"), filepath.Join(in, "fresh")
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "etcd", "member", "wal"), 0o755), os.Mkdir(fresh, 0o700)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chmod(dir, mode), os.Chmod(fresh, mode)); err != nil {
			t.Fatal(err)
		}
		t.Run(fmt.Sprint(mode, " init of an empty one"), func(t *testing.T) {
			wantRefused(t, in, verbs(t, fresh)["init"], fresh+": writable by group or others", "hint: chmod go-w "+fresh)
		})
		if err := os.WriteFile(filepath.Join(dir, "ca.pem"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		for name, args := range verbs(t, dir) {
			if (name == "verify" || name == "cluster") && mode&os.ModeSticky != 0 {
				continue // what it makes is its own, and the bit keeps others from it
			}
			t.Run(fmt.Sprint(mode, " ", name), func(t *testing.T) {
				wantRefused(t, in, args, dir+": writable by group or others", "hint: chmod go-w "+dir)
			})
		}
	}
}

// So they can where it lies in a directory that everybody can write to, or where they have made a
// link to it, and with etcd's directory alone.
func TestDirectoryThatOthersExchange(t *testing.T) {
	in := t.TempDir()
	open, etcd := filepath.Join(in, "open"), filepath.Join(in, "etcd")
	for path, mode := range map[string]os.FileMode{open: 0o777, filepath.Join(in, "sticky"): 0o777 | os.ModeSticky, etcd: 0o770} {
		if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	wantRefused(t, in, verbs(t, filepath.Join(open, "data"))["init"], open+": writable by everybody", "hint: chmod o-w "+open)
	wantRefused(t, in, append(verbs(t, filepath.Join(in, "data"))["start"], "--etcd-data-dir="+etcd), etcd+": writable by group or others", "hint: chmod go-w "+etcd)
	if code, out := kthwd(t, verbs(t, filepath.Join(in, "sticky", "data"))["init"]...); code != 0 {
		t.Errorf("below a directory with a sticky bit: exit code %d\n%s", code, out)
	}
	if os.Geteuid() != 0 {
		return
	}
	target, link := filepath.Join(in, "sticky", "data"), filepath.Join(in, "sticky", "link")
	if err := errors.Join(os.Symlink(target, link), os.Lchown(link, stranger, stranger)); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, in, verbs(t, link)["init"], link+" belongs to the user ", "hint: run this as that user: ")
}

// A directory of root's is refused by its permissions, as before.
func TestDirectoryOfRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have files of two users")
	}
	in, err := os.MkdirTemp("", "kthwd-attack-") // which the other user can reach
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(in) })
	dir, binary := filepath.Join(in, "data"), filepath.Join(in, "kthwd")
	data, err := os.ReadFile(kthwtest.Binary(t))
	if err == nil {
		err = os.WriteFile(binary, data, 0o755)
	}
	if err == nil {
		err = os.Mkdir(dir, 0o755)
	}
	if err == nil {
		err = os.Chmod(in, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, verbs(t, dir)["start"]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "permission denied") {
		t.Errorf("got %v:\n%s", err, out)
	}
}
