package archive

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// FuzzArchive: whatever stands before a right last line, an archive is refused, or its files have names
// that stay in a directory.
func FuzzArchive(f *testing.F) {
	content := map[string][]byte{Database: []byte("database"), "files/ca.pem": []byte("certificate")} // short, or the fuzzer spends its time on them
	m := Manifest{Format: Format, Created: noon, Name: "c0", Cluster: "f5b3f7d8d797cc5f", Files: []File{
		NewFile("files/ca.pem", content["files/ca.pem"], 0o644, false), NewFile(Database, content[Database], 0o600, true),
	}}
	var b bytes.Buffer
	if err := writeBody(&b, m, func(name string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content[name])), nil }, nil); err != nil {
		f.Fatal(err)
	}
	body := b.Bytes()
	f.Add(body)
	f.Add(body[:len(body)/2])
	f.Add([]byte(ageIntro))
	for _, change := range [][2]string{{"files/ca.pem", "files/../ca"}, {"files/ca.pem", "/files/capem"}, {`"size": 11`, `"size": -1`}, {`"format": 1`, `"format": 9`}, {"etcd.db", "etcd.dc"}} {
		f.Add(bytes.ReplaceAll(body, []byte(change[0]), []byte(change[1])))
	}
	path := filepath.Join(f.TempDir(), "archive")
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sha256.New()
		sum.Write(body)
		if err := os.WriteFile(path, append(bytes.Clone(body), footer("f5b3f7d8d797cc5f", sum)...), 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := Open(path)
		if err != nil {
			return
		}
		defer a.Close()
		for name := range a.Files {
			if !IsFileName(name) {
				t.Errorf("a file is called %q", name)
			}
		}
		_ = a.readDatabase(io.Discard, nil) // what Extract does, without the disk, which it waits for
	})
}
