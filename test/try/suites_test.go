package try

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/names"
	"kthwd/test/kthwtest"
)

// suites are controller-runtime's own tests that start envtest.
var suites = []string{"envtest", "client"}

// TestSuites runs controller-runtime's own suites with upstream's programs and with kthwd's names:
// what passes with the first passes with the second.
func TestSuites(t *testing.T) {
	upstream := os.Getenv("KTHWD_SUITES")
	if upstream == "" {
		t.Skip("make test-suites runs it")
	}
	assets := t.TempDir()
	for _, name := range names.All {
		if err := os.Symlink(kthwtest.Binary(t), filepath.Join(assets, name)); err != nil {
			t.Fatal(err)
		}
	}
	project, env := project(t)
	source := strings.TrimSpace(shell(t, project, env, "go mod download sigs.k8s.io/controller-runtime && go list -m -f {{.Dir}} sigs.k8s.io/controller-runtime"))
	module := t.TempDir()
	if err := os.CopyFS(module, os.DirFS(source)); err != nil { // it tests its files in their directories
		t.Fatal(err)
	}
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			dir := filepath.Join(module, "pkg", suite)
			shell(t, dir, env, "go test -c -o suite.test .")
			want, took := results(t, dir, env, upstream)
			got, tookOurs := results(t, dir, env, assets)
			t.Logf("pkg/%s: %d tests, %d passed with upstream's programs in %v, and %d with kthwd's names in %v, %.2f of it", suite, len(want), passes(want),
				took.Round(100*time.Millisecond), passes(got), tookOurs.Round(100*time.Millisecond), tookOurs.Seconds()/took.Seconds())
			if passes(want) < 20 {
				t.Errorf("%d tests passed with upstream's programs: this shows nothing", passes(want))
			}
			for name, state := range want {
				if got[name] != state {
					t.Errorf("%s: %s with kthwd's names, %s with upstream's programs", name, got[name], state)
				}
			}
		})
	}
}

const passed = "passed"

func passes(all map[string]string) (n int) {
	for _, state := range all {
		if state == passed {
			n++
		}
	}
	return n
}

// plain is the result of a test that is not Ginkgo's.
var plain = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\S+)`)

// results runs a suite with the programs in a directory, and returns the state of each test.
func results(t *testing.T, dir string, env []string, assets string) (all map[string]string, took time.Duration) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report.json")
	cmd := exec.Command(filepath.Join(dir, "suite.test"), "-test.v", "-test.timeout=20m", "-ginkgo.json-report="+file)
	cmd.Dir, cmd.Env = dir, append(slices.Clone(env), "KUBEBUILDER_ASSETS="+assets)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	took = time.Since(began)
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	all = map[string]string{}
	for _, m := range plain.FindAllStringSubmatch(string(out), -1) {
		all[m[2]] = map[string]string{"PASS": passed, "FAIL": "failed", "SKIP": "skipped"}[m[1]]
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var reports []struct {
		SpecReports []struct {
			ContainerHierarchyTexts           []string
			LeafNodeText, LeafNodeType, State string
			Failure                           struct{ Message string }
		}
	}
	if err := json.Unmarshal(data, &reports); err != nil {
		t.Fatal(err)
	}
	for _, r := range reports {
		for _, s := range r.SpecReports {
			name := strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeType, s.LeafNodeText), " / ")
			all[name] = s.State
			if s.State == "failed" {
				t.Logf("with %s: %s: %s", assets, name, s.Failure.Message)
			}
		}
	}
	return all, took
}
