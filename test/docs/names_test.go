package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

const architecture = "docs/ARCHITECTURE.md"

// tops are the top-level directories with sources.
var tops = []string{"appliance", "cmd", "health", "lb", "packaging", "rbacseed", "test"}

// sources are the paths of the Go files, relative to the checkout.
func sources(t *testing.T) (files []string) {
	t.Helper()
	for _, top := range tops {
		_ = filepath.WalkDir(filepath.Join(kthwtest.Root(), top), func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil // a top-level directory that does not exist yet
			case d.IsDir() && d.Name() == "testdata":
				return filepath.SkipDir
			case strings.HasSuffix(path, ".go"):
				name, _ := filepath.Rel(kthwtest.Root(), path)
				files = append(files, name)
			}
			return nil
		})
	}
	if len(files) < 50 {
		t.Fatalf("got %d Go files, want more: %q", len(files), files)
	}
	return files
}

// TestCodeMap requires every package in the code map, and every path there to exist.
func TestCodeMap(t *testing.T) {
	p := page{architecture, read(t, architecture)}
	codeMap := p.section(t, "## Code map")
	named := map[string]bool{}
	for _, row := range rows(codeMap) {
		for _, m := range span.FindAllStringSubmatch(row[0], -1) {
			named[m[1]] = true
		}
	}
	for _, file := range sources(t) {
		dir := filepath.Dir(file)
		if !named[dir] {
			named[dir] = true
			t.Errorf("the code map in %s lacks the package %s", architecture, dir)
		}
	}
	for name := range named {
		exists(t, p, name)
	}
}

var (
	pathName   = regexp.MustCompile(`(?:^|[^\w./-])((?:appliance|cmd|docs|health|lb|packaging|rbacseed|test)/[\w./*-]*\w)`)
	goFile     = regexp.MustCompile(`^[\w-]+\.go$`)
	testName   = regexp.MustCompile(`^Test[A-Z]\w*$`)
	makeTarget = regexp.MustCompile(`^make ([a-z][a-z0-9-]*)`)
	upstream   = regexp.MustCompile(`(?:k8s\.io|go\.etcd\.io)/[\w./-]+\.go\b`)
	link       = regexp.MustCompile(`\]\(([^()\s]+)\)`)
)

// TestNames requires every path, test and make target that a page names to exist.
func TestNames(t *testing.T) {
	files := sources(t)
	tests, makefile := testFunctions(t, files), read(t, "Makefile")
	for _, p := range pages(t) {
		for _, m := range pathName.FindAllStringSubmatch(p.prose(), -1) {
			exists(t, p, m[1])
		}
		for _, s := range p.spans() {
			switch m := makeTarget.FindStringSubmatch(s); {
			case goFile.MatchString(s) && !slices.ContainsFunc(files, func(f string) bool { return filepath.Base(f) == s }):
				t.Errorf("%s names the file %s, which is not there", p.path, s)
			case testName.MatchString(s) && !tests[s]:
				t.Errorf("%s names %s, which is no test", p.path, s)
			case m != nil && !strings.Contains(makefile, "\n"+m[1]+":"):
				t.Errorf("%s names %q, which is no target of the Makefile", p.path, s)
			}
		}
	}
}

func exists(t *testing.T, p page, path string) {
	t.Helper()
	if found, err := filepath.Glob(filepath.Join(kthwtest.Root(), path)); err != nil || len(found) == 0 {
		t.Errorf("%s names %s, which is not there", p.path, path)
	}
}

func testFunctions(t *testing.T, files []string) map[string]bool {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	tests := map[string]bool{}
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, m := range function.FindAllStringSubmatch(read(t, file), -1) {
			tests[m[1]] = true
		}
	}
	return tests
}

// TestUpstreamFiles requires the other modules' files that the pages name to exist in
// the versions in go.mod.
func TestUpstreamFiles(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Path}} {{.Dir}}", "all")
	cmd.Dir = kthwtest.Root()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -m: %v", err)
	}
	dirs := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if path, dir, found := strings.Cut(strings.TrimSpace(line), " "); found {
			dirs[path] = dir
		}
	}
	for _, p := range pages(t) {
		for _, file := range upstream.FindAllString(p.text, -1) {
			module := file
			for module != "." && dirs[module] == "" {
				module = filepath.Dir(module)
			}
			if module == "." {
				t.Errorf("%s names %s, which is in no module of go.mod", p.path, file)
			} else if _, err := os.Stat(filepath.Join(dirs[module], strings.TrimPrefix(file, module))); err != nil {
				t.Errorf("%s names %s: %v", p.path, file, err)
			}
		}
	}
}

// TestLinks requires every link to one of our pages or headings to have a target.
func TestLinks(t *testing.T) {
	all := map[string]page{}
	for _, p := range pages(t) {
		all[p.path] = p
	}
	for _, p := range all {
		for _, m := range link.FindAllStringSubmatch(p.prose(), -1) {
			u, err := url.Parse(m[1])
			if err != nil || u.Scheme != "" {
				if err != nil || u.Scheme != "https" {
					t.Errorf("%s: link %s: want a path or https", p.path, m[1])
				}
				continue
			}
			target := p.path
			if u.Path != "" {
				target = filepath.Join(filepath.Dir(p.path), u.Path)
			}
			exists(t, p, target)
			if u.Fragment != "" && !slices.Contains(all[target].anchors(), u.Fragment) {
				t.Errorf("%s: link %s: no such heading", p.path, m[1])
			}
		}
	}
}

// anchors are GitHub's anchors for the page's headings.
func (p page) anchors() (all []string) {
	for line := range strings.Lines(p.prose()) {
		if !strings.HasPrefix(line, "#") {
			continue
		}
		heading := strings.ToLower(strings.TrimSpace(strings.TrimLeft(line, "#")))
		heading = regexp.MustCompile(`[^\w\s-]`).ReplaceAllString(heading, "")
		all = append(all, strings.ReplaceAll(heading, " ", "-"))
	}
	return all
}

// exits are calls that end the process.
var exits = map[string][]string{
	"os": {"Exit"}, "syscall": {"Exit", "Kill"}, "log": {"Fatal", "Fatalf", "Fatalln"},
	"klog": {"Fatal", "Fatalf", "Fatalln", "FatalDepth", "Exit", "Exitf", "FlushAndExit"},
}

// TestOnlyMainExits is an invariant of docs/ARCHITECTURE.md.
func TestOnlyMainExits(t *testing.T) {
	for _, file := range sources(t) {
		if strings.HasPrefix(file, "test/") || strings.HasSuffix(file, "_test.go") || file == "cmd/kthwd/main.go" || file == "packaging/nfpm/main.go" || file == "packaging/image/main.go" {
			continue
		}
		fset := token.NewFileSet()
		parsed, err := parser.ParseFile(fset, filepath.Join(kthwtest.Root(), file), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if pkg, ok := s.X.(*ast.Ident); ok && slices.Contains(exits[pkg.Name], s.Sel.Name) {
					t.Errorf("%s:%d: %s.%s: only main exits the process", file, fset.Position(n.Pos()).Line, pkg.Name, s.Sel.Name)
				}
			}
			return true
		})
	}
}
