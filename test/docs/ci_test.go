package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// roots are the steps that only root runs.
var roots = []string{"packages", "attacks as an ordinary user", "packages on machines that systemd boots"}

// TestCIReportsTimes requires .ci/run to print the duration of each step, even if one
// fails, and to run the light tests and lint before all others. Its programs are stubs.
func TestCIReportsTimes(t *testing.T) {
	for _, tt := range []struct {
		name, fails string
		steps       []string // as printed in the table, in this order, without root's
		result      string
	}{
		{"all passes", "nothing", []string{"light tests, and lint beside them", "unit and process tests", "random input", "end-to-end tests", "packages twice, the same bytes"}, "passed"},
		{"lint fails", "lint", []string{"light tests, and lint beside them"}, "FAILED in: light tests, and lint beside them"},
		{"the first one fails", "test-light", []string{"light tests, and lint beside them"}, "FAILED in: light tests, and lint beside them"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{
				"make": `case " $* " in *" ` + tt.fails + ` "*) exit 3 ;; esac`, "apt-get": "", "npm": "",
			} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(kthwtest.Root(), ".ci", "run"))
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if (err == nil) != (tt.result == "passed") {
				t.Errorf("got %v, want %s", err, tt.result)
			}
			_, table, found := strings.Cut(string(out), "\n== "+tt.result+"\n")
			if !found {
				t.Fatalf("lacks the result %q:\n%s", tt.result, out)
			}
			var got []string
			for _, m := range regexp.MustCompile(`(?m)^ +\d+:\d\d  (.+)$`).FindAllStringSubmatch(table, -1) {
				if !slices.Contains(roots, m[1]) {
					got = append(got, m[1])
				}
			}
			if want := append(tt.steps, "in all"); strings.Join(got, "; ") != strings.Join(want, "; ") {
				t.Errorf("table: got %q, want %q\n%s", got, want, out)
			}
		})
	}
}
