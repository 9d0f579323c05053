package lb

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

// Each case has a test and two further members of its class, and all of them exist.
func TestCases(t *testing.T) {
	text, err := os.ReadFile("cases.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	err = filepath.WalkDir(kthwtest.Root(), func(path string, d fs.DirEntry, err error) error {
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
	cases := regexp.MustCompile(`(?m)^//\t(\w.*?)  +.*?((?:Test|row )[^;\n]*); (.*)$`).FindAllStringSubmatch(string(text), -1)
	if lines := regexp.MustCompile(`(?m)^//\t`).FindAllString(string(text), -1); len(cases) != len(lines) || len(cases) == 0 {
		t.Errorf("%d of %d lines are cases", len(cases), len(lines))
	}
	for _, c := range cases {
		if members := regexp.MustCompile(`\bTest\w+|\brows? \d+|\bpart \w+`).FindAllString(c[3], -1); len(members) < 2 {
			t.Errorf("%s: %d further members, want two", c[1], len(members))
		}
		for _, name := range regexp.MustCompile(`\bTest\w+`).FindAllString(c[2]+" "+c[3], -1) {
			if !tests[name] {
				t.Errorf("%s: there is no %s", c[1], name)
			}
		}
		for _, m := range regexp.MustCompile(`\b(?:row|rows|and) (\d+\w?)\b`).FindAllStringSubmatch(c[2]+" "+c[3], -1) {
			if !slices.ContainsFunc(rows, func(r *row) bool { return r.name == m[1] }) {
				t.Errorf("%s: there is no row %s", c[1], m[1])
			}
		}
	}
}
