package status

import (
	"fmt"
	"os"
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
}
