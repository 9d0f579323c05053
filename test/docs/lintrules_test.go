package docs

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"kthwd/test/kthwtest"
)

// TestLintRules requires the packages in .golangci.yml to exist and to follow its rules,
// tests included. It does not need golangci-lint itself.
func TestLintRules(t *testing.T) {
	var file struct {
		Version string
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules map[string]struct {
						Files []string
						Deny  []struct{ Pkg, Desc string }
					}
				}
			}
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, ".golangci.yml")), &file); err != nil {
		t.Fatal(err)
	}
	rules := file.Linters.Settings.Depguard.Rules
	if file.Version != "2" || len(rules["light"].Files) < 10 || len(rules["clients"].Files) == 0 {
		t.Fatalf("got %+v, want version 2 with the rules light and clients", file)
	}
	// The light packages are those of the table of arrows.
	var listed []string
	for line := range strings.Lines(read(t, "appliance/config/testdata/arrows.txt")) {
		if dir, ok := strings.CutSuffix(strings.TrimSpace(line), " light"); ok && !strings.HasPrefix(line, "#") {
			listed = append(listed, "**/"+strings.TrimSpace(dir)+"/*.go")
		}
	}
	slices.Sort(listed)
	if light := slices.Sorted(slices.Values(rules["light"].Files)); !slices.Equal(light, listed) {
		t.Errorf("rule light: got %q, want the light packages of arrows.txt, %q", light, listed)
	}
	for name, rule := range rules {
		for _, glob := range rule.Files {
			dir, ok := strings.CutPrefix(strings.TrimSuffix(glob, "/*.go"), "**/")
			if found, _ := filepath.Glob(filepath.Join(kthwtest.Root(), dir, "*.go")); !ok || len(found) == 0 {
				t.Errorf("%s: %s is no package", name, glob)
				continue
			}
			for _, imported := range imports(t, dir) {
				for _, deny := range rule.Deny {
					if strings.HasPrefix(imported, deny.Pkg) {
						t.Errorf("%s imports %s: %s", dir, imported, deny.Desc)
					}
				}
			}
		}
	}
}

// imports are the imports of a package and its tests.
func imports(t *testing.T, dir string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-f", `{{join .Imports "\n"}}
{{join .TestImports "\n"}}
{{join .XTestImports "\n"}}`, "./"+dir)
	cmd.Dir = kthwtest.Root()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v", dir, err)
	}
	return strings.Fields(string(out))
}
