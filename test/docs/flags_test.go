package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kthwd/appliance/program"
	"kthwd/test/kthwtest"
)

const differences = "docs/tutorial-differences.md"

// goldens is where appliance's tests keep the command lines that kthwd makes.
const goldens = "appliance/testdata/args"

// A flagRow is a line of a flag table; "" means that this side has no such flag.
type flagRow struct {
	guide, kthwd, cis string // --key=value
	sometimes         bool   // kthwd sets it in some configurations only
}

// TestFlags compares the tables with the guide's flags and kthwd's.
func TestFlags(t *testing.T) {
	p := page{differences, read(t, differences)}
	guide := guideFlags()
	for _, name := range []string{program.Etcd, program.APIServer, program.ControllerManager, program.Scheduler} {
		t.Run(name, func(t *testing.T) {
			table := flagRows(t, p.section(t, "## "+name))
			checkGuide(t, table, guide[name])
			plain, cis := goldenFlags(t, name)
			checkKthwd(t, table, plain)
			for i := range table {
				table[i].kthwd = table[i].cis
			}
			checkKthwd(t, table, cis)
		})
	}
}

// guideFlags are the guide's flags by program.
func guideFlags() map[string][]string {
	flags := map[string][]string{}
	for _, name := range []string{program.Etcd, program.APIServer, program.ControllerManager, program.Scheduler} {
		for _, g := range program.GuideFlags(name) {
			flags[name] = append(flags[name], g.Text)
		}
	}
	return flags
}

var flagCell = regexp.MustCompile("^`(--[^`]+)`( \\(loopback only\\))?$")

func flagRows(t *testing.T, section string) (all []flagRow) {
	t.Helper()
	for _, cells := range rows(section) {
		if len(cells) != 4 {
			t.Fatalf("a row has %d cells, want 4: %q", len(cells), cells)
		}
		var r flagRow
		if cells[0] != "—" {
			m := flagCell.FindStringSubmatch(cells[0])
			if m == nil {
				t.Fatalf("%q is neither a flag nor —", cells[0])
			}
			r.guide = m[1]
		}
		switch m := flagCell.FindStringSubmatch(cells[1]); {
		case cells[1] == "same":
			r.kthwd = r.guide
		case m != nil:
			r.kthwd, r.sometimes = m[1], m[2] != ""
		case cells[1] != "—":
			t.Fatalf("%q is neither a flag nor same nor —", cells[1])
		}
		switch m := flagCell.FindStringSubmatch(cells[2]); {
		case cells[2] == "same":
			r.cis = r.kthwd
		case m != nil:
			r.cis = m[1]
		case cells[2] != "—":
			t.Fatalf("%q is neither a flag nor same nor —", cells[2])
		}
		if (r.kthwd != r.guide || r.cis != r.kthwd) && cells[3] == "" {
			t.Errorf("%s, %s, %s: the row does not say why", r.guide, r.kthwd, r.cis)
		}
		all = append(all, r)
	}
	return all
}

// checkGuide requires one row for each flag of the guide, and no other.
func checkGuide(t *testing.T, table []flagRow, guide []string) {
	t.Helper()
	if len(guide) == 0 {
		t.Error("appliance/program/guide.txt has none")
	}
	var got []string
	for _, r := range table {
		if r.guide != "" {
			got = append(got, r.guide)
		}
	}
	for _, flag := range guide {
		if !slices.Contains(got, flag) {
			t.Errorf("the guide's %s has no row", flag)
		}
	}
	for i, flag := range got {
		if !slices.Contains(guide, flag) || slices.Contains(got[:i], flag) {
			t.Errorf("%s: not a flag of the guide, or twice", flag)
		}
	}
}

// goldenFlags are kthwd's flags for a program in each configuration of appliance's
// golden files: every file with the program's name in its path; those with the profile cis
// apart.
func goldenFlags(t *testing.T, program string) (plain, cis map[string][]string) {
	t.Helper()
	dir := filepath.Join(kthwtest.Root(), goldens)
	plain, cis = map[string][]string{}, map[string][]string{}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimSuffix(filepath.Base(path), ".golden")
		if err != nil || d.IsDir() || name != program && !strings.HasPrefix(name, program+"-") && !strings.HasPrefix(name, program+".") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		found := plain
		if strings.HasSuffix(name, "-cis") {
			found = cis
		}
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "--") {
				found[path] = append(found[path], line)
			}
		}
		return nil
	})
	if len(plain) == 0 || len(cis) == 0 {
		t.Errorf("%s lacks golden files for %s", goldens, program)
	}
	return plain, cis
}

// checkKthwd requires a row for each of kthwd's flags, and a flag for each row.
func checkKthwd(t *testing.T, table []flagRow, variants map[string][]string) {
	t.Helper()
	matched := map[flagRow]bool{}
	for path, flags := range variants {
		for _, flag := range flags {
			key, _, _ := strings.Cut(flag, "=")
			i := slices.IndexFunc(table, func(r flagRow) bool { return r.kthwd == key || strings.HasPrefix(r.kthwd, key+"=") })
			if i < 0 {
				t.Errorf("%s has no row (%s)", flag, filepath.Base(path))
				continue
			}
			if flagPattern(table[i].kthwd).MatchString(flag) {
				matched[table[i]] = true
			}
		}
	}
	for _, r := range table {
		if r.kthwd == "" || matched[r] {
			continue
		}
		if r.sometimes && len(variants) == 1 {
			t.Logf("%s: no golden file has a configuration that sets it", r.kthwd)
			continue
		}
		t.Errorf("kthwd does not pass %s", r.kthwd)
	}
}

// flagPattern lets NAME, ADDRESS and the guide's variables match a machine's values.
func flagPattern(flag string) *regexp.Regexp {
	pattern := regexp.QuoteMeta(flag)
	pattern = regexp.MustCompile(`NAME|ADDRESS|\\\$\\\{\w+\\\}|\\\$\w+`).ReplaceAllString(pattern, `[][\w.:-]+`)
	return regexp.MustCompile("^" + pattern + "$")
}
