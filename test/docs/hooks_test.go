package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// TestHooks makes commits in a repository after make hooks.
func TestHooks(t *testing.T) {
	for _, program := range []string{"git", "make", "bash", "gofmt"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	r := newRepository(t)
	const formatted, crooked = "package a\n", "package   a\n"
	long := strings.Repeat("é", 72) // characters count, not bytes
	for _, tt := range []struct {
		name, file, content, message string
		tests, want                  string // the light tests' command; part of the refusal, "" if the commit succeeds
	}{
		{"a commit", "a.go", formatted, "a: begin", "true", ""},
		{"with a body", "a.txt", "1", "a: begin\n\nwhy, at any length" + strings.Repeat(" and more", 20), "true", ""},
		{"72 characters", "a.txt", "2", long, "true", ""},
		{"73 characters", "a.txt", "3", long + "é", "true", "the subject has 73 characters, at most 72 are allowed"},
		{"two lines", "a.txt", "4", "a: begin\nand go on", "true", "the subject has more than one line"},
		{"to be folded in", "a.txt", "5", "fixup! " + long, "true", ""},
		{"not formatted", "b.go", crooked, "a: more", "true", "gofmt -w b.go && git add b.go"},
		{"a failing test", "b.go", formatted, "a: more", "false", "Error 1"},
		{"a failing test, pages only", "b.md", "page", "a: more", "false", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.write("Makefile", "test-light:\n\t@test -z \"$$GIT_DIR$$GIT_INDEX_FILE\"\n\t@"+tt.tests+"\n")
			r.write(tt.file, tt.content)
			r.must("git", "add", tt.file)
			out, err := r.run("git", "commit", "-m", tt.message)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v\n%s", err, out)
			case tt.want != "" && (err == nil || !strings.Contains(out, tt.want)):
				t.Errorf("got %v, want a refusal with %q\n%s", err, tt.want, out)
			}
			r.must("git", "reset", "--quiet")
		})
	}
	t.Run("formatted after git add", func(t *testing.T) { // the staged text counts
		r.write("c.go", crooked)
		r.must("git", "add", "c.go")
		r.write("c.go", formatted)
		r.write("Makefile", "test-light:\n")
		if out, err := r.run("git", "commit", "-m", "a: more"); err == nil || !strings.Contains(out, "not formatted: c.go") {
			t.Errorf("got %v, want a refusal\n%s", err, out)
		}
	})
}

// repository is a git repository for the test.
type repository struct {
	t   *testing.T
	dir string
}

func newRepository(t *testing.T) repository {
	t.Helper()
	r := repository{t, t.TempDir()}
	if err := os.CopyFS(filepath.Join(r.dir, ".githooks"), os.DirFS(filepath.Join(kthwtest.Root(), ".githooks"))); err != nil {
		t.Fatal(err)
	}
	r.must("git", "init", "--quiet")
	r.must("make", "-s", "-f", filepath.Join(kthwtest.Root(), "Makefile"), "hooks")
	return r
}

func (r repository) write(name, content string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(content), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r repository) run(name string, args ...string) (output string, err error) {
	cmd := exec.CommandContext(r.t.Context(), name, args...)
	cmd.Dir = r.dir
	cmd.Env = append(withoutMake(withoutGit(os.Environ())), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r repository) must(name string, args ...string) {
	r.t.Helper()
	if out, err := r.run(name, args...); err != nil {
		r.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// withoutGit drops the variables that git sets if a hook runs this test.
func withoutGit(env []string) (rest []string) {
	for _, v := range env {
		if !strings.HasPrefix(v, "GIT_") {
			rest = append(rest, v)
		}
	}
	return rest
}
