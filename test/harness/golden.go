package harness

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files and generated tables")

// Updating says whether the flag -update was given, which make golden does.
func Updating() bool { return *update }

// Golden checks that a file holds got. With -update it writes the file instead.
func Golden(t testing.TB, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if line, old, now := difference(string(want), string(got)); line > 0 {
		t.Errorf("%s is not what the code says, from line %d on (make golden, or -update, rewrites it); got\n%swant\n%s", path, line, now, old)
	}
}

// difference returns the number of the first line in which two texts differ, and their lines
// from there up to what both end with; 0 if they are the same.
func difference(a, b string) (line int, inA, inB string) {
	if a == b {
		return 0, "", ""
	}
	one, other := strings.SplitAfter(a, "\n"), strings.SplitAfter(b, "\n")
	line = 1
	for len(one) > 0 && len(other) > 0 && one[0] == other[0] {
		one, other, line = one[1:], other[1:], line+1
	}
	for len(one) > 0 && len(other) > 0 && one[len(one)-1] == other[len(other)-1] {
		one, other = one[:len(one)-1], other[:len(other)-1]
	}
	return line, strings.Join(one, ""), strings.Join(other, "")
}
