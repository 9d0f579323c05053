package status

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kthwd/appliance/cause"
)

// The page lists every kind of finding that comes from the state of the programs.
func TestKindsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations/status.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, k := range append(cause.Kinds[:len(cause.Kinds):len(cause.Kinds)], Kinds...) {
		if row := fmt.Sprintf("| `%s` | %s |\n", k.Kind, k.Means); !strings.Contains(string(page), row) {
			t.Errorf("docs/operations/status.md lacks %q", row)
		}
		if seen[k.Kind] {
			t.Errorf("%s is listed twice", k.Kind)
		}
		seen[k.Kind] = true
	}
	for _, kind := range watchersKinds(t) {
		if !strings.Contains(string(page), "| `"+kind+"` | ") {
			t.Errorf("docs/operations/status.md lacks the kind %s of a watcher", kind)
		}
	}
}

var ownKind = regexp.MustCompile(`(?:kind[A-Z][A-Za-z]* *= *|Kind: |status\.(?:Healthy|Degraded|Down), )"([a-z_]+)"`)

// watchersKinds returns the kinds that packages other than cause and status name themselves.
func watchersKinds(t *testing.T) (all []string) {
	t.Helper()
	files, err := filepath.Glob("../*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "status.Finding") && !strings.Contains(string(text), "status.Degraded") {
			continue
		}
		for _, m := range ownKind.FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
	}
	if len(all) < 8 {
		t.Errorf("only %d kinds are found: %q", len(all), all)
	}
	return all
}
