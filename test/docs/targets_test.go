package docs

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// endToEndOnly is the beginning of a test that skips itself without KTHWD_E2E.
var endToEndOnly = regexp.MustCompile(`\A(?:.*\n)?(?:\t(?:endToEnd|needE2E|requireE2E|kthwtest\.LongTurn|kthwtest\.Turn|t\.Parallel)\(.*\n)*?(?:\t(?:endToEnd|needE2E|requireE2E)\(t|\tif os\.Getenv\("KTHWD_E2E"\) == "" \{\n\t\tt\.Skip)`)

// TestTargetsRunAllTests requires every test that skips itself in make test to be run by make
// test-e2e, test-upgrade or test-rotations: otherwise it proves nothing.
func TestTargetsRunAllTests(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "make", "-n", "test-e2e", "test-upgrade", "test-rotations")
	cmd.Dir = kthwtest.Root()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make -n: %v\n%s", err, out)
	}
	chosen := regexp.MustCompile(`-run '([^']*)'`)
	run := map[string][]*regexp.Regexp{} // by directory; an empty expression chooses all
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "KTHWD_E2E=1 ") {
			continue
		}
		tests := ""
		if m := chosen.FindStringSubmatch(line); m != nil {
			tests = m[1]
		}
		for _, word := range strings.Fields(line) {
			if dir, isPackage := strings.CutPrefix(word, "./"); isPackage {
				dir = strings.TrimSuffix(dir, "/...")
				run[dir] = append(run[dir], regexp.MustCompile(tests))
			}
		}
	}
	found := 0
	for _, file := range sources(t) {
		if !strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, function := range strings.Split(read(t, file), "\nfunc ")[1:] {
			name, _, _ := strings.Cut(function, "(")
			if !testName.MatchString(name) || !endToEndOnly.MatchString(function) {
				continue
			}
			found++
			if !slices.ContainsFunc(run[filepath.Dir(file)], func(re *regexp.Regexp) bool { return re.MatchString(name) }) {
				t.Errorf("%s: no target runs %s", file, name)
			}
		}
	}
	if found < 30 {
		t.Errorf("got %d tests that skip themselves, want more", found)
	}
}
