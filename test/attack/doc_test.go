package attack

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// finding is a row of the table in doc.go.
type finding struct {
	id    string
	tests []string
}

func findings(t *testing.T) (all []finding) {
	t.Helper()
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^//\t([CHML]\d+) .*?  +((?:Test|none: ).*)$`).FindAllStringSubmatch(string(doc), -1)
	if len(rows) != 27 {
		t.Errorf("%d findings, want 27", len(rows))
	}
	for _, row := range rows {
		all = append(all, finding{row[1], regexp.MustCompile(`\bTest\w+`).FindAllString(row[2], -1)})
	}
	return all
}

// The table of doc.go has every finding, and each test in it exists.
func TestTable(t *testing.T) {
	tests := map[string]bool{}
	err := filepath.WalkDir(kthwtest.Root(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(data), -1) {
			tests[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings(t) {
		for _, name := range f.tests {
			if !tests[name] {
				t.Errorf("%s: there is no %s", f.id, name)
			}
		}
	}
}
