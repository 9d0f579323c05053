package archive

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"kthwd/appliance/advice"
)

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// write makes an archive in dir, made at a time, and returns its path.
func write(t *testing.T, dir string, at time.Time, recipients ...age.Recipient) string {
	t.Helper()
	return writeFormat(t, Format, dir, at, recipients...)
}

// writeFormat makes an archive of that format.
func writeFormat(t *testing.T, format int, dir string, at time.Time, recipients ...age.Recipient) string {
	t.Helper()
	m, open := sampleOf(format, at)
	path := filepath.Join(dir, Name(m))
	if err := Write(path, m, open, recipients); err != nil {
		t.Fatal(err)
	}
	return path
}

// sampleOf is the content of an archive, with another database each time.
func sampleOf(format int, at time.Time) (Manifest, func(name string) (io.ReadCloser, error)) {
	database := make([]byte, 40<<10)
	_, _ = rand.Read(database)
	content := map[string][]byte{Database: database, "files/ca.pem": []byte("certificate"), "files/kthwd.yaml": nil}
	m := Manifest{Format: format, Created: at, Kthwd: "v0.1.0", Name: "c0", Cluster: "f5b3f7d8d797cc5f", Revision: 7, Files: []File{
		NewFile("files/ca.pem", []byte("certificate"), 0o644, false), NewFile("files/kthwd.yaml", nil, 0o600, false), NewFile(Database, database, 0o600, true),
	}}
	if format > 1 {
		m.Files[2].SHA256 = ""
	}
	return m, func(name string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content[name])), nil }
}

// readAll opens an archive and extracts it.
func readAll(t *testing.T, path string, identities ...age.Identity) error {
	t.Helper()
	a, err := Open(path, identities...)
	if err != nil {
		return err
	}
	defer a.Close()
	return a.Extract(t.TempDir(), nil)
}

func newIdentity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestGoodArchives(t *testing.T) {
	id := newIdentity(t)
	for i := range 25 {
		for _, recipients := range [][]age.Recipient{nil, {id.Recipient(), newIdentity(t).Recipient()}} {
			path := write(t, t.TempDir(), noon.Add(time.Duration(i)*time.Second), recipients...)
			if err := readAll(t, path, id); err != nil {
				t.Error(err)
			}
			if err := Check(path); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestFormat1 reads an archive that a kthwd has written which knew no other format.
func TestFormat1(t *testing.T) {
	path := filepath.Join("testdata", "format1")
	a, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if m := a.Manifest; m.Format != 1 || m.Revision != 7 || m.Database().SHA256 == "" {
		t.Errorf("got %+v", m)
	}
	dir := t.TempDir()
	if err := a.Extract(dir, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, Database)); string(got) != "the database of format 1" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestSums lets sha256sum compare what tar has unpacked, as a person without kthwd does.
func TestSums(t *testing.T) {
	path, dir := write(t, t.TempDir(), noon), t.TempDir()
	unpack := "head -c -113 \"$1\" | tar x -C \"$2\" && cd \"$2\" && sha256sum -c SHA256SUMS"
	out, err := exec.CommandContext(t.Context(), "sh", "-ec", unpack, "sh", path, dir).CombinedOutput()
	const want = "manifest.json: OK\nfiles/ca.pem: OK\nfiles/kthwd.yaml: OK\netcd.db: OK\n"
	if err != nil || string(out) != want {
		t.Errorf("got %v\n%swant\n%s", err, out, want)
	}
}

// TestSwappedFiles exchanges files of two archives, with a last line that fits.
func TestSwappedFiles(t *testing.T) {
	m, open := sampleOf(Format, noon)
	other, openOther := sampleOf(Format, noon.Add(time.Hour))
	var a, b bytes.Buffer
	if err := errors.Join(writeBody(&a, m, open, nil), writeBody(&b, other, openOther, nil)); err != nil {
		t.Fatal(err)
	}
	const head = 512 // of each file in a tar
	database := bytes.LastIndex(a.Bytes(), []byte(Database+"\x00")) + head
	sums := bytes.LastIndex(a.Bytes(), []byte(sumsName+"\x00")) + head
	for name, end := range map[string]int{Database: sums - head, manifestName: a.Len()} {
		body := slices.Concat(a.Bytes()[:database], b.Bytes()[database:end], a.Bytes()[end:])
		sum := sha256.New()
		sum.Write(body)
		path := filepath.Join(t.TempDir(), "swapped")
		if err := os.WriteFile(path, append(body, footer(m.Cluster, sum)...), 0o600); err != nil {
			t.Fatal(err)
		}
		if d, ok := errors.AsType[*Damaged](readAll(t, path)); !ok || d.Part != name {
			t.Errorf("got %v, want that %s is damaged", d, name)
		}
	}
}

func TestExtract(t *testing.T) {
	path := write(t, t.TempDir(), noon)
	a, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	dir := t.TempDir()
	if err := a.Extract(dir, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "ca.pem")); string(got) != "certificate" {
		t.Errorf("got %q, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(dir, Database)); err != nil || info.Mode().Perm() != 0o600 || info.Size() != 40<<10 {
		t.Errorf("the database: %v, %v", info, err)
	}
}

// TestDamage flips one byte at each of 200 random places of an archive, and cuts it off
// at others. Each damage must be named, with and without encryption, and by its sum
// alone.
func TestDamage(t *testing.T) {
	id := newIdentity(t)
	for name, made := range map[string]struct {
		format     int
		recipients []age.Recipient
	}{"plain": {Format, nil}, "encrypted": {Format, []age.Recipient{id.Recipient()}}, "format 1": {1, nil}} {
		t.Run(name, func(t *testing.T) {
			dir, recipients := t.TempDir(), made.recipients
			path := writeFormat(t, made.format, dir, noon, recipients...)
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			named := func(what string, data []byte) {
				t.Helper()
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
				err := readAll(t, path, id)
				if err == nil || !strings.Contains(err.Error(), path) {
					t.Errorf("%s: got %v, want an error that names the archive", what, err)
				}
				if err := Check(path); err == nil {
					t.Errorf("%s: the sum does not show it", what)
				}
			}
			source := mathrand.New(mathrand.NewPCG(1, uint64(len(recipients))))
			for range 200 {
				data, at := slices.Clone(good), source.IntN(len(good))
				data[at] ^= byte(1 << source.IntN(8))
				named(fmt.Sprintf("byte %d of %d", at, len(data)), data)
			}
			for _, n := range []int{0, 1, 100, len(good) / 2, len(good) - 1} {
				named(fmt.Sprintf("cut off at %d of %d", n, len(good)), good[:n])
			}
			named("a byte more", append(slices.Clone(good), 'x'))
		})
	}
}

func TestDamageIsNamed(t *testing.T) {
	path := write(t, t.TempDir(), noon)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[bytes.LastIndex(data, []byte("certificate"))]++
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	d, ok := errors.AsType[*Damaged](readAll(t, path))
	if !ok || d.Part != "files/ca.pem" || d.Path != path {
		t.Errorf("got %v, want that files/ca.pem is damaged", d)
	}
}

// An archive under the name of another one is refused; one with a name of its own is not.
func TestExchangedArchives(t *testing.T) {
	dir := t.TempDir()
	a, b := write(t, dir, noon), write(t, dir, noon.Add(time.Hour))
	if err := os.Rename(a, b); err != nil {
		t.Fatal(err)
	}
	if err := readAll(t, b); err == nil || !strings.Contains(err.Error(), filepath.Base(a)) {
		t.Errorf("got %v, want the name %s in it", err, filepath.Base(a))
	}
	own := filepath.Join(dir, "before-the-upgrade")
	if err := os.Rename(b, own); err != nil {
		t.Fatal(err)
	}
	if err := readAll(t, own); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	id, dir := newIdentity(t), t.TempDir()
	sealed := write(t, dir, noon, id.Recipient())
	foreign := filepath.Join(dir, "snapshot.db")
	if err := os.WriteFile(foreign, make([]byte, 1<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, path string
		ids        []age.Identity
		want, hint string
		is         error
	}{
		{"without an identity", sealed, nil, "encrypted", "--identity", ErrEncrypted},
		{"another identity", sealed, []age.Identity{newIdentity(t)}, "other recipients", "--identity", ErrEncrypted},
		{"something else", foreign, nil, "not an archive of kthwd", "etcdutl", nil},
		{"a directory", dir, nil, "not a file", "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Open(tt.path, tt.ids...)
			hint, _ := advice.Of(err)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(hint, tt.hint) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, hint %q, want %q and %q", err, hint, tt.want, tt.hint)
			}
		})
	}
}

func TestParseManifestRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"a newer format":   `{"format":3,"kthwd":"v9.0.0","files":[{"name":"etcd.db"}]}`,
		"no database":      `{"format":1,"files":[{"name":"files/ca.pem"}]}`,
		"no sum, old":      `{"format":1,"files":[{"name":"etcd.db"}]}`,
		"no sum of a file": `{"format":2,"files":[{"name":"files/ca.pem"},{"name":"etcd.db"}]}`,
		"a path":           `{"format":1,"files":[{"name":"files/../../etc/passwd"},{"name":"etcd.db"}]}`,
		"a hidden file":    `{"format":1,"files":[{"name":"files/.bashrc"},{"name":"etcd.db"}]}`,
		"a file twice":     `{"format":1,"files":[{"name":"files/ca.pem"},{"name":"files/ca.pem"},{"name":"etcd.db"}]}`,
		"a large file":     `{"format":1,"files":[{"name":"files/ca.pem","size":99999999},{"name":"etcd.db"}]}`,
		"large files":      `{"format":1,"files":[` + strings.Repeat(`{"name":"files/X","size":1000000},`, 100) + `{"name":"etcd.db"}]}`,
		"a negative size":  `{"format":1,"files":[{"name":"etcd.db","size":-1}]}`,
		"something else":   `[]`,
		"an old structure": `{}`,
	} {
		for n := 0; strings.Contains(text, "files/X"); n++ {
			text = strings.Replace(text, "files/X", fmt.Sprintf("files/%d.pem", n), 1)
		}
		if _, err := parseManifest([]byte(text)); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	_, err := parseManifest([]byte(`{"format":3,"kthwd":"v9.0.0"}`))
	if hint, _ := advice.Of(err); !strings.Contains(hint, "v9.0.0") {
		t.Errorf("a newer format: got %v, hint %q", err, hint)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	var paths []string // the oldest first
	for i := range 5 {
		paths = append(paths, write(t, dir, noon.Add(time.Duration(i)*time.Hour)))
	}
	flip := func(path string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[5000] ^= 1
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flip(paths[4])
	flip(paths[3])
	flip(paths[2])
	other := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Prune(dir, 2, Verified{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(p), fmt.Sprint(Pruning{[]string{paths[0], paths[2]}, []string{paths[1]}}); got != want {
		t.Errorf("got %s, want %s: the newest whole one stays", got, want)
	}
	all, err := List(dir)
	if err != nil || len(all) != 3 || all[0].File != paths[4] || all[2].File != paths[1] {
		t.Errorf("left: %v, %v", all, err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
	if p, err = Prune(dir, 2, Verified{File: paths[4]}); err != nil || len(p.Delete) != 1 || p.Delete[0] != paths[1] {
		t.Errorf("with a newer verified one: got %v, %v", p, err)
	}
	if _, err := PlanPrune(dir, 0, Verified{}); err == nil {
		t.Error("keep 0 is not refused")
	}
}

// When every archive is damaged, none is deleted: a person must decide.
func TestPruneKeepsAllWhenNoneIsWhole(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		path := write(t, dir, noon.Add(time.Duration(i)*time.Hour))
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[3000]++
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := Prune(dir, 1, Verified{}); err != nil || len(p.Delete) != 0 || len(p.Kept) != 2 {
		t.Errorf("got %v, %v, want two kept", p, err)
	}
}

func TestParseRecipients(t *testing.T) {
	id := newIdentity(t)
	file := filepath.Join(t.TempDir(), "recipients")
	if err := os.WriteFile(file, []byte("# of the operators\n"+id.Recipient().String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ParseRecipients([]string{id.Recipient().String(), file}); err != nil || len(got) != 2 {
		t.Errorf("got %v, %v", got, err)
	}
	secret := id.String()
	for name, text := range map[string]string{"cut off": id.Recipient().String()[:30], "no file": "/nowhere", "an identity": secret} {
		_, err := ParseRecipients([]string{text})
		if hint, _ := advice.Of(err); err == nil || hint == "" || strings.Contains(err.Error(), secret[20:]) {
			t.Errorf("%s: got %v, want an error with a hint and without a secret", name, err)
		}
	}
}

// An archive that lacks the keys of the CAs does not displace another controller's that may have them.
func TestPruneKeepsKeys(t *testing.T) {
	dir, id := t.TempDir(), newIdentity(t)
	hour := 0
	make := func(name string, key bool, recipients ...age.Recipient) string {
		t.Helper()
		m, open := sampleOf(Format, noon.Add(time.Duration(hour)*time.Hour))
		hour++
		m.Name = name
		with := open
		if key {
			m.Files = append([]File{NewFile("files/ca-key.pem", []byte("key"), 0o600, true)}, m.Files...)
			with = func(name string) (io.ReadCloser, error) {
				if name == "files/ca-key.pem" {
					return io.NopCloser(strings.NewReader("key")), nil
				}
				return open(name)
			}
		}
		path := filepath.Join(dir, Name(m))
		if err := Write(path, m, with, recipients); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sealed := make("c0", true, id.Recipient())
	plain := make("c0", true)
	others := make("c2", false)
	first := make("c1", false)
	second := make("c1", false)
	p, err := Prune(dir, 1, Verified{File: second, Lacks: []string{"ca-key.pem"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(p.Delete), fmt.Sprint([]string{first, others}); got != want {
		t.Errorf("an archive without keys displaces %s; want %s", got, want)
	}
	third := make("c1", true, id.Recipient())
	if p, err = Prune(dir, 1, Verified{File: third}); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(p.Delete), fmt.Sprint([]string{sealed, plain, second}); got != want {
		t.Errorf("an archive with keys displaces %s; want %s", got, want)
	}
}
