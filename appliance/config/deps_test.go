package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// forbidden is what a package must not link, by the second word of arrows.txt.
var forbidden = map[string][]string{
	"light":      {"k8s.io/", "go.etcd.io/", "google.golang.org/grpc"},
	"libraries":  {"k8s.io/kubernetes/"},
	"kubernetes": nil,
}

// arrow is one line of arrows.txt.
type arrow struct{ pkg, links string }

func readArrows(t *testing.T) (all []arrow) {
	t.Helper()
	text, err := os.ReadFile("testdata/arrows.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		if len(words) != 2 {
			t.Fatalf("arrows.txt: got %q, want a package and a word", line)
		}
		if _, ok := forbidden[words[1]]; !ok {
			t.Fatalf("arrows.txt: %s: unknown word %q", words[0], words[1])
		}
		all = append(all, arrow{"kthwd/" + words[0], words[1]})
	}
	return all
}

// listed is what go list -json prints of a package.
type listed struct {
	ImportPath    string
	Imports, Deps []string
}

func listPackages(t *testing.T) (all []listed) {
	t.Helper()
	list := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./appliance/...", "./cmd/...", "./health/...", "./lb/...", "./rbacseed/...")
	list.Dir = "../.."
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
}

// Imports point one way, and the packages that are worked on most compile and
// are tested in seconds, because none of them links what is heavy.
func TestArrows(t *testing.T) {
	if testing.Short() {
		t.Skip("runs go list")
	}
	arrows := readArrows(t)
	place := func(pkg string) int {
		return slices.IndexFunc(arrows, func(a arrow) bool { return a.pkg == pkg })
	}
	packages := listPackages(t)
	if len(packages) != len(arrows) {
		t.Errorf("arrows.txt lists %d packages, got %d", len(arrows), len(packages))
	}
	for _, p := range packages {
		at := place(p.ImportPath)
		if at < 0 {
			t.Errorf("arrows.txt lacks %s", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			if strings.HasPrefix(imported, "kthwd/") && place(imported) >= at {
				t.Errorf("%s imports %s, which stands below it in arrows.txt", p.ImportPath, imported)
			}
		}
		for _, heavy := range forbidden[arrows[at].links] {
			if i := slices.IndexFunc(p.Deps, func(dep string) bool { return strings.HasPrefix(dep, heavy) }); i >= 0 {
				t.Errorf("%s links %s, and arrows.txt calls it %s", p.ImportPath, p.Deps[i], arrows[at].links)
			}
		}
	}
}
