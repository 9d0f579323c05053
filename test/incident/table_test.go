package incident

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// Each alert of the table is shipped, and the one about all other kinds is about these.
func TestAlertsAreShipped(t *testing.T) {
	rules, err := os.ReadFile("../../packaging/prometheus/kthwd.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	exprs := map[string]string{}
	for _, m := range regexp.MustCompile(`- alert: (\w+)[^\n]*\n\s+expr: ([^\n]+)`).FindAllSubmatch(rules, -1) {
		exprs[string(m[1])] = string(m[2])
	}
	_, others, found := strings.Cut(exprs[alertDegraded], `kind!~"`)
	others, _, _ = strings.Cut(others, `"`)
	if !found {
		t.Fatalf("%s is not about the kinds that others leave: %s", alertDegraded, exprs[alertDegraded])
	}
	for _, alert := range []string{alertDown, alertNotReady} {
		if exprs[alert] == "" {
			t.Errorf("%s is not shipped", alert)
		}
	}
	kinds := regexp.MustCompile(`kthwd_findings\{kind=~?"([^"]+)"`)
	for kind, alert := range alerts {
		switch expr := exprs[alert]; {
		case expr == "":
			t.Errorf("%s: %s is not shipped", kind, alert)
		case alert == alertDegraded:
			if slices.Contains(strings.Split(others, "|"), kind) {
				t.Errorf("%s leaves out %s", alert, kind)
			}
		default:
			if m := kinds.FindStringSubmatch(expr); m != nil && !slices.Contains(strings.Split(m[1], "|"), kind) {
				t.Errorf("%s is about %s, not about %s", alert, m[1], kind)
			}
		}
	}
}

// An incident that was skipped has no points, and counts.
func TestTable(t *testing.T) {
	full := func(name string) row { return row{name: name, cause: true, since: true, command: true} }
	var seen []row
	for _, name := range names {
		seen = append(seen, full(name))
	}
	if !enough(allRows(seen)) || !enough(allRows(seen[1:])) {
		t.Error("all incidents but one are not enough")
	}
	if enough(allRows(seen[2:])) || enough(allRows(nil)) {
		t.Error("incidents that are missing have points")
	}
	var out strings.Builder
	silentBridge := full(names[0])
	silentBridge.json, silentBridge.bridge, silentBridge.alert = tells, absent, "KthwdDown"
	printTable(&out, allRows([]row{silentBridge}))
	lines := strings.Split(out.String(), "\n")
	if got := strings.Fields(strings.TrimPrefix(lines[1], names[0])); !slices.Equal(got, []string{"yes", "yes", "yes", "yes", "-", "no", "no", "no", "KthwdDown"}) {
		t.Errorf("got %q", lines[1])
	}
	if got := strings.Fields(strings.TrimPrefix(lines[2], names[1])); !slices.Equal(got, slices.Repeat([]string{"no"}, 9)) {
		t.Errorf("an incident that was skipped: got %q", lines[2])
	}
	if want := "3 of 51 points"; lines[len(names)+1] != want {
		t.Errorf("got %q, want %q", lines[len(names)+1], want)
	}
}

// The table of doc.go has every input, each with a test of its own and two further members of its
// class at least. The tests exist, and each case that is named is in the file of its test.
func TestInputs(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	files := testFiles(t)
	rows := regexp.MustCompile(`(?m)^//\t([SNC]\d+) +(.*?)  +(Test.*); beside (.*)$`).FindAllStringSubmatch(string(doc), -1)
	var got []string
	for _, row := range rows {
		got = append(got, row[1])
		if own := members(t, files, row[1], row[3]); own == 0 {
			t.Errorf("%s: no test of its own", row[1])
		}
		if others := members(t, files, row[1], row[4]); others < 2 {
			t.Errorf("%s: %d further members of its class, want two", row[1], others)
		}
	}
	want := strings.Fields("S1 S2 S3 S4 S5 S6 S7 S8 N1 N2 N3 N4 N5 N6 N7 C1 C2 C3 C4 C5 C6 C7 C8 C9 C10 C11 C12 C13 C14")
	if !slices.Equal(got, want) {
		t.Errorf("got rows %v, want %v", got, want)
	}
}

// members counts the tests of a cell, or their cases where it names some.
func members(t *testing.T, files map[string]string, row, cell string) (n int) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(Test\w+)((?: "[^"]+")*)(?:, |$)`).FindAllStringSubmatch(cell, -1) {
		text, ok := files[m[1]]
		if !ok {
			t.Errorf("%s: there is no %s", row, m[1])
		}
		cases := regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(m[2], -1)
		for _, c := range cases {
			if !strings.Contains(text, c[1]) {
				t.Errorf("%s: %s has no %q", row, m[1], c[1])
			}
		}
		n += max(len(cases), 1)
	}
	return n
}

// testFiles returns the text of the file of each test.
func testFiles(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(kthwtest.Root(), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(data), -1) {
			files[m[1]] = string(data)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
