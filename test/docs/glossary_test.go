package docs

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

const glossary = "docs/glossary.md"

// forDevelopers are the pages about the code, which use the code's own names.
var forDevelopers = []string{architecture, "CONTRIBUTING.md", glossary}

// word matches a word or several, whatever their case and the space between them.
func word(words string) *regexp.Regexp {
	fields := strings.Fields(words)
	for i, f := range fields {
		fields[i] = regexp.QuoteMeta(f)
	}
	return regexp.MustCompile(`(?i)\b` + strings.Join(fields, `\s+(?:// )?`) + `s?\b`)
}

// TestGlossary requires each word of the glossary to be used, and no user's page to use
// a word to avoid.
func TestGlossary(t *testing.T) {
	p := page{glossary, read(t, glossary)}
	head, avoid, found := strings.Cut(p.text, "\n## Words to avoid\n")
	if !found {
		t.Fatalf("%s has no words to avoid", glossary)
	}

	var code, prose strings.Builder
	for _, file := range sources(t) {
		if !strings.HasPrefix(file, "test/") && !strings.HasSuffix(file, "_test.go") {
			code.WriteString(read(t, file))
		}
	}
	users := map[string]string{} // the pages for users, without link targets
	for _, other := range pages(t) {
		if other.path != glossary {
			prose.WriteString(other.text)
		}
		if !slices.Contains(forDevelopers, other.path) && !strings.HasPrefix(other.path, "docs/decisions/") {
			users[other.path] = literalName.ReplaceAllString(link.ReplaceAllString(other.text, "]()"), "")
		}
	}

	defined := rows(head)
	if len(defined) < 30 {
		t.Errorf("got %d words, want at least 30", len(defined))
	}
	for _, row := range defined {
		if w := word(row[0]); !w.MatchString(code.String()) && !w.MatchString(prose.String()) {
			t.Errorf("%s explains %q, which neither the code nor a page uses", glossary, row[0])
		}
		if !strings.HasSuffix(row[1], ".") || strings.Count(row[1], ". ") > 0 {
			t.Errorf("%s: %q: want one sentence, got %q", glossary, row[0], row[1])
		}
	}
	for _, row := range rows(avoid) {
		for synonym := range strings.SplitSeq(row[0], ", ") {
			for path, text := range users {
				if found := word(synonym).FindString(text); found != "" {
					t.Errorf("%s: %q: say %q, see %s", path, found, row[1], glossary)
				}
			}
		}
	}
}

// literalName matches a key in etcd and a name of Kubernetes', which keep their words.
var literalName = regexp.MustCompile("`(/kthwd/|system:)[^`]*`|system:masters")

func TestWord(t *testing.T) {
	for _, tt := range []struct {
		word, text string
		want       bool
	}{
		{"slow start", "in a slow\n// start of", true},
		{"voter", "two Voters", true},
		{"term", "determined", false},
		{"hand-over", "the hand-over of", true},
	} {
		if got := word(tt.word).MatchString(tt.text); got != tt.want {
			t.Errorf("%q in %q: got %v, want %v", tt.word, tt.text, got, tt.want)
		}
	}
}
