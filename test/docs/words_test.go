package docs

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// decidedBy maps the variables and constants below appliance that hold words of other
// programs, on which kthwd bases a decision, to a function that lists the words.
var decidedBy = map[string]func(ast.Expr) []string{
	"expectedLines":  firstOfEach, // lines that go to level debug
	"expectedParts":  causes,      // the same, matched by a part of the line
	"refusals":       firstOfEach, // etcd's reasons not to start
	"fallenBehind":   firstOfEach, // how etcd dies when it hears what it lacks
	"metItsRemoval":  everyString, // how etcd dies when it is removed
	"flagNotDefined": alternatives,
	"knownCauses":    firstOfEach, // causes of errors, with what to do
	"routineErrors":  everyString, // errors that are no cause of anything
}

// TestUpstreamWords requires each of these words in the sources of the versions in
// go.mod: nothing else notices when upstream changes one.
func TestUpstreamWords(t *testing.T) {
	missing := map[string]string{} // by words, the variable that holds them
	found := map[string]bool{}
	for _, file := range sources(t) {
		if !strings.HasPrefix(file, "appliance/") || strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(kthwtest.Root(), file), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 || decidedBy[spec.Names[0].Name] == nil {
				return true
			}
			name := spec.Names[0].Name
			found[name] = true
			for _, words := range decidedBy[name](spec.Values[0]) {
				missing[words] = name
			}
			return true
		})
	}
	for name := range decidedBy {
		if !found[name] {
			t.Errorf("%s is nowhere below appliance: name what holds the words now", name)
		}
	}
	t.Logf("%d texts", len(missing))
	if len(missing) < 25 {
		t.Errorf("got %d texts, want more: %q", len(missing), slices.Collect(maps.Keys(missing)))
	}
	for _, dir := range upstreamDirs(t) {
		if len(missing) > 0 {
			lookFor(t, dir, missing)
		}
	}
	for words, name := range missing {
		t.Errorf("%s: upstream's sources do not have %q", name, words)
	}
}

// upstreamDirs are the sources of Kubernetes, etcd and the flag parsers, and of the errors
// of Go's standard library.
func upstreamDirs(t *testing.T) (dirs []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Path}} {{.Dir}}", "all")
	cmd.Dir = kthwtest.Root()
	modules, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -m: %v", err)
	}
	root, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("go env GOROOT: %v", err)
	}
	for _, dir := range []string{"flag", "context", "crypto/tls", "crypto/x509", "syscall"} {
		dirs = append(dirs, filepath.Join(strings.TrimSpace(string(root)), "src", dir))
	}
	for line := range strings.Lines(string(modules)) {
		path, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
		if dir != "" && (strings.HasPrefix(path, "go.etcd.io/") || strings.HasPrefix(path, "k8s.io/") || path == "github.com/spf13/pflag") {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// lookFor removes from missing the words found in a file below dir, tests excepted.
func lookFor(t *testing.T, dir string, missing map[string]string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case len(missing) == 0:
			return filepath.SkipAll
		case d.IsDir() && slices.Contains([]string{"test", "testdata", "vendor"}, d.Name()):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasPrefix(d.Name(), "zz_generated"):
			return nil
		}
		text, err := os.ReadFile(path)
		maps.DeleteFunc(missing, func(words, _ string) bool { return bytes.Contains(text, []byte(words)) })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func everyString(e ast.Expr) (all []string) {
	ast.Inspect(e, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				all = append(all, s)
			}
		}
		return true
	})
	return all
}

// causes are all strings, each cut into an error and its cause.
func causes(e ast.Expr) (all []string) {
	for _, s := range everyString(e) {
		all = append(all, strings.Split(s, ": ")...)
	}
	return all
}

// firstOfEach are the first strings of the rows of a table.
func firstOfEach(e ast.Expr) (all []string) {
	table, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil
	}
	for _, row := range table.Elts {
		if words := everyString(row); len(words) > 0 {
			all = append(all, words[0])
		}
	}
	return all
}

var alternative = regexp.MustCompile(`^\(\?:(.*?)\)`)

// alternatives are the texts a|b of a regular expression (?:a|b)….
func alternatives(e ast.Expr) (all []string) {
	for _, s := range everyString(e) {
		if m := alternative.FindStringSubmatch(s); m != nil {
			all = append(all, strings.Split(m[1], "|")...)
		}
	}
	return all
}
