package try

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"kthwd/appliance/names"
	"kthwd/test/kthwtest"
)

// block returns the block of a kind in docs/testing.md.
func block(t *testing.T, kind string) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(kthwtest.Root(), "docs", "testing.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)\n```"+kind+"\n(.*?)```\n").FindAllStringSubmatch(string(page), -1)
	if len(m) != 1 {
		t.Fatalf("docs/testing.md has %d blocks of %s, want 1", len(m), kind)
	}
	return m[0][1]
}

// project is a copy of the Go module in testdata, in a directory of its own, with kthwd in PATH.
func project(t *testing.T) (dir string, env []string) {
	t.Helper()
	dir, bin := t.TempDir(), t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/envtest")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(kthwtest.Binary(t), filepath.Join(bin, "kthwd")); err != nil {
		t.Fatal(err)
	}
	return dir, append(os.Environ(), "TMPDIR="+memory(t), "KUBECONFIG=", "PATH="+bin+":"+os.Getenv("PATH"))
}

func shell(t *testing.T, dir string, env []string, script string) string {
	t.Helper()
	cmd := exec.Command("bash", "-e", "-o", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = dir, env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// TestPageShell runs the lines for a shell.
func TestPageShell(t *testing.T) {
	dir, env := project(t)
	if got := shell(t, dir, env, block(t, "shell-script")); !strings.Contains(got, "default   Active") {
		t.Errorf("got %q", got)
	}
}

// TestPageWorkflow runs the steps of the workflow; those that run Go need the module proxy.
func TestPageWorkflow(t *testing.T) {
	var workflow struct {
		Jobs map[string]struct{ Steps []struct{ Name, Run string } }
	}
	if err := yaml.Unmarshal([]byte(block(t, "yaml")), &workflow); err != nil {
		t.Fatal(err)
	}
	dir, env := project(t)
	ran := 0
	for _, step := range workflow.Jobs["test"].Steps {
		if step.Run == "" || strings.Contains(step.Run, "go test") && !foreign() {
			continue
		}
		shell(t, dir, env, step.Run)
		ran++
	}
	if ran == 0 {
		t.Error("no step ran")
	}
}

// foreign reports whether tests may use modules that kthwd does not.
func foreign() bool { return os.Getenv("KTHWD_E2E") != "" }

// TestPageGo compares the Go test on the page with the one that TestEnvtest runs.
func TestPageGo(t *testing.T) {
	want, err := os.ReadFile("testdata/envtest/envtest_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if got := block(t, "go"); got != string(want) {
		t.Errorf("docs/testing.md has\n%s\nand testdata/envtest/envtest_test.go\n%s", got, want)
	}
}

// TestEnvtest is controller-runtime's own module, a user of the names and of kthwd try.
func TestEnvtest(t *testing.T) {
	if !foreign() {
		t.Skip("set KTHWD_E2E=1 to build controller-runtime, from the module proxy")
	}
	dir, env := project(t)
	assets := t.TempDir()
	for _, name := range names.All {
		if err := os.Symlink(kthwtest.Binary(t), filepath.Join(assets, name)); err != nil {
			t.Fatal(err)
		}
	}
	shell(t, dir, append(env, "KUBEBUILDER_ASSETS="+assets), "go test -count=1 ./...")
	shell(t, dir, append(env, "USE_EXISTING_CLUSTER=true"), "kthwd try -- go test -count=1 ./...")
}
