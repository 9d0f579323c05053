// Package docs checks README.md, CONTRIBUTING.md, the other pages at the top, the
// pages below docs and .github.
//
//   - Every line "$ command" of a console block is run, see TestCommands;
//   - the flag tables of docs/tutorial-differences.md are what kthwd passes, see TestFlags;
//   - its table of old words is written from the source, see TestOldWords;
//   - the tables of docs/performance.md are written from a run's JSON, see TestPerformance;
//   - each word of docs/glossary.md is used, and no user's page uses one to avoid, see TestGlossary;
//   - every package, path, test, make target and link that they name exists.
//
// It reads its own checkout and changes only the generated tables, with -update.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// A page is one document.
type page struct {
	path string // below the checkout: docs/operations/status.md
	text string
}

// pages are all documents for people.
func pages(t *testing.T) []page {
	t.Helper()
	paths := []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", bugTemplate, changeTemplate}
	err := fs.WalkDir(os.DirFS(kthwtest.Root()), "docs", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".md") {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil || len(paths) < 20 {
		t.Fatalf("got %d pages, want at least 20 (%v): %q", len(paths), err, paths)
	}
	var all []page
	for _, path := range paths {
		all = append(all, page{path, read(t, path)})
	}
	return all
}

// read returns the text of a file of the checkout.
func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(kthwtest.Root(), path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// A block is a fenced block.
type block struct {
	line    int // of the fence, from 1
	kind    string
	lines   []string
	comment string // the HTML comment in the line above
}

// blocks are the fenced blocks of a page.
func (p page) blocks() (all []block) {
	var open *block
	previous := ""
	for i, line := range strings.Split(p.text, "\n") {
		kind, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open == nil:
			open = &block{line: i + 1, kind: kind}
			if strings.HasPrefix(previous, "<!--") {
				open.comment = previous
			}
		case fence:
			all, open = append(all, *open), nil
		case open != nil:
			open.lines = append(open.lines, line)
		}
		previous = line
	}
	return all
}

// prose returns the page without its blocks.
func (p page) prose() string {
	var b strings.Builder
	inside := false
	for line := range strings.Lines(p.text) {
		if strings.HasPrefix(line, "```") {
			inside = !inside
			continue
		}
		if !inside {
			b.WriteString(line)
		}
	}
	return b.String()
}

var span = regexp.MustCompile("`([^`\n]+)`")

// spans are the pieces of code in the prose.
func (p page) spans() (all []string) {
	for _, m := range span.FindAllStringSubmatch(p.prose(), -1) {
		all = append(all, m[1])
	}
	return all
}

// section returns the text from a heading to the next one of its level or above.
func (p page) section(t *testing.T, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut("\n"+p.text, "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no heading %q", p.path, heading)
	}
	level, _, _ := strings.Cut(heading, " ")
	for end := level; end != ""; end = end[1:] {
		rest, _, _ = strings.Cut(rest, "\n"+end+" ")
	}
	return rest
}

// rows are the rows of a section's tables, with cells trimmed and without header rows.
func rows(section string) (all [][]string) {
	for line := range strings.Lines(section) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") || !strings.HasSuffix(line, "|") {
			continue
		}
		if strings.HasPrefix(line, "|---") {
			all = all[:len(all)-1]
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(line[1:len(line)-1], "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		all = append(all, cells)
	}
	return all
}
