package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Bounds of the lines of a package's code, without tests. A package that passes them holds several
// subjects: find the seam, and give one of them a package of its own.
const (
	mostLines     = 1600 // of a package below appliance
	mostRootLines = 1000 // of appliance itself, which only puts the others together
)

// largerPackages are those that may have more, and why.
var largerPackages = map[string]struct {
	most int
	why  string
}{
	"appliance/pki":    {6500, "one subject, the files of a data directory, in one package that every other uses; light, so that it compiles in a second"},
	"appliance/status": {4500, "one subject, the report: its tables, its page, its server and its client; light"},
	"appliance/config": {2800, "one table of settings with its file, its checks and its origins; light"},
}

// TestSizes holds the packages below appliance to a size that a person can read in one go.
func TestSizes(t *testing.T) {
	for _, a := range readArrows(t) {
		name := strings.TrimPrefix(a.pkg, "kthwd/")
		most := mostLines
		switch larger, is := largerPackages[name]; {
		case name == "appliance":
			most = mostRootLines
		case !strings.HasPrefix(name, "appliance/"):
			continue
		case is:
			most = larger.most
		}
		if n := linesOf(t, name); n > most {
			t.Errorf("%s has %d lines without its tests, want at most %d: find a seam", name, n, most)
		}
	}
	for name, larger := range largerPackages {
		if _, err := os.Stat(filepath.Join("..", "..", name)); err != nil || larger.why == "" {
			t.Errorf("%s may have %d lines: %v, and the reason is %q", name, larger.most, err, larger.why)
		}
	}
}

// linesOf counts the lines of a package's Go files, without tests.
func linesOf(t *testing.T, pkg string) (n int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", pkg, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pkg, len(files), err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n += bytes.Count(data, []byte("\n"))
	}
	return n
}
