package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// TestVersionedNames holds the page of versions to the code: each key that kthwd keeps in etcd,
// and each path that controllers ask each other for, is in it.
func TestVersionedNames(t *testing.T) {
	promises := read(t, "docs/versioning.md")
	name := regexp.MustCompile(`"(/kthwd/[a-z-]+)`)
	found := 0
	err := filepath.WalkDir(filepath.Join(kthwtest.Root(), "appliance"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range name.FindAllStringSubmatch(string(source), -1) {
			found++
			if !regexp.MustCompile("`" + m[1] + "[/`]").MatchString(promises) {
				t.Errorf("docs/versioning.md does not name %s, which %s uses", m[1], filepath.Base(path))
			}
		}
		return err
	})
	if err != nil || found == 0 {
		t.Fatalf("got %d names, %v; want the keys and paths of the code", found, err)
	}
}
