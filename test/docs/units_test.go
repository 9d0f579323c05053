package docs

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"kthwd/test/kthwtest"
)

// The units that are shipped are no more open than the balancer's and the controller's have been, by
// systemd's own measure: 0 is closed, 10 open.
func TestUnitsAreClosed(t *testing.T) {
	const most = 1.6
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not here")
	}
	units, err := filepath.Glob(filepath.Join(kthwtest.Root(), "packaging/systemd/*.service"))
	if err != nil || len(units) != 2 {
		t.Fatalf("units: %v, %v; want 2", units, err)
	}
	for _, unit := range units {
		out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=true", "--no-pager", unit).CombinedOutput()
		m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindSubmatch(out)
		if m == nil {
			t.Skipf("this systemd-analyze (before 250) does not judge a file: %v\n%.300s", err, out)
		}
		if level, err := strconv.ParseFloat(string(m[1]), 64); err != nil || level > most {
			t.Errorf("%s: exposure %s, want at most %v:\n%s", filepath.Base(unit), m[1], most, out)
		}
	}
}
