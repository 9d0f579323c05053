package incident

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
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
