package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"

	"kthwd/test/harness"
	"kthwd/test/kthwtest"
)

// TestOldWords compares the table of old words with appliance/cmdline/oldwords.go, from
// which it is generated.
func TestOldWords(t *testing.T) {
	text := read(t, differences)
	head, rest, begins := strings.Cut(text, "<!-- old words: begin.")
	note, rest, _ := strings.Cut(rest, "\n")
	_, tail, ends := strings.Cut(rest, "<!-- old words: end -->")
	if !begins || !ends {
		t.Fatalf("%s lacks the marks of the table", differences)
	}
	want := head + "<!-- old words: begin." + note + "\n\n" + oldWordsTable(t) + "\n<!-- old words: end -->" + tail
	harness.Golden(t, filepath.Join(kthwtest.Root(), differences), []byte(want))
}

// conditions describes the functions of oldWord.when; a function without a description
// fails the test, so that none is forgotten.
var conditions = map[string]string{
	"isOn": "when it is on", "isOff": "when it is off", "isZero": "when it is 0", "notLeases": "with a lock other than leases",
	"lacksValues": "entries without a value", "namesGonePlugins": "with plugins that are gone", "namesGoneGates": "with gates that are gone",
}

// values describes the functions of oldWord.value.
var values = map[string]string{
	"explicitTrue": ", `=true` added", "leases": "=leases", "withoutGonePlugins": ", without plugins that are gone", "withoutGoneGates": ", without gates that are gone",
}

// oldWordsTable makes the table from the Go source.
func oldWordsTable(t *testing.T) string {
	src := parseAppliance(t)
	var b strings.Builder
	b.WriteString("| program | old flag | read as | because |\n|---|---|---|---|\n")
	words, ok := src.vars["oldWords"].(*ast.CompositeLit)
	if !ok {
		t.Fatal("oldwords.go: oldWords is no map literal")
	}
	for _, element := range words.Elts {
		entry := element.(*ast.KeyValueExpr)
		for _, word := range src.list(t, entry.Value, "oldLogging") {
			b.WriteString(src.row(t, src.text(t, entry.Key), word))
		}
	}
	for _, word := range src.list(t, src.vars["oldLogging"], "") {
		b.WriteString(src.row(t, "kube-…", word))
	}
	b.WriteString("\nAdmission plugins that are gone, and what took their place:\n\n| plugin | instead |\n|---|---|\n")
	var gone []string
	for _, element := range src.vars["gonePlugins"].(*ast.CompositeLit).Elts {
		entry := element.(*ast.KeyValueExpr)
		gone = append(gone, fmt.Sprintf("| `%s` | %s |\n", src.text(t, entry.Key), src.text(t, entry.Value)))
	}
	sort.Strings(gone)
	b.WriteString(strings.Join(gone, ""))
	b.WriteString("\nFeature gates that are gone, and are left out if they are set to true; set to false they are refused: ")
	gone = nil
	for _, element := range src.vars["goneGates"].(*ast.CompositeLit).Elts {
		gone = append(gone, "`"+src.text(t, element.(*ast.KeyValueExpr).Key)+"`")
	}
	sort.Strings(gone)
	b.WriteString(strings.Join(gone, ", ") + ".\n")
	return b.String()
}

// source holds the parts of packages cmdline and program that the table needs.
type source struct {
	vars   map[string]ast.Expr
	consts map[string]string
}

func parseAppliance(t *testing.T) source {
	t.Helper()
	s := source{map[string]ast.Expr{}, map[string]string{}}
	for _, name := range []string{"cmdline/oldwords.go", "program/names.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(kthwtest.Root(), "appliance", name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			general, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range general.Specs {
				if v, ok := spec.(*ast.ValueSpec); ok && len(v.Values) == 1 {
					s.vars[v.Names[0].Name] = v.Values[0]
					if text, ok := literal(v.Values[0]); ok {
						s.consts[v.Names[0].Name] = text
					}
				}
			}
		}
	}
	return s
}

func literal(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}

// text returns the value of a string literal or constant.
func (s source) text(t *testing.T, e ast.Expr) string {
	t.Helper()
	if text, ok := literal(e); ok {
		return text
	}
	if selected, ok := e.(*ast.SelectorExpr); ok {
		e = selected.Sel
	}
	if name, ok := e.(*ast.Ident); ok {
		if text, ok := s.consts[name.Name]; ok {
			return text
		}
	}
	t.Fatalf("oldwords.go: %T is no string that this test can read", e)
	return ""
}

// list reads a []oldWord literal, or an append of the list called shared to one.
func (s source) list(t *testing.T, e ast.Expr, shared string) []ast.Expr {
	t.Helper()
	if call, ok := e.(*ast.CallExpr); ok && len(call.Args) == 2 {
		if name, ok := call.Args[1].(*ast.Ident); !ok || name.Name != shared {
			t.Fatal("oldwords.go: an append of another value than oldLogging")
		}
		e = call.Args[0]
	}
	lit, ok := e.(*ast.CompositeLit)
	if !ok {
		t.Fatalf("oldwords.go: %T is no list of old words", e)
	}
	return lit.Elts
}

// row is one oldWord as a row of the table.
func (s source) row(t *testing.T, program string, e ast.Expr) string {
	t.Helper()
	fields := map[string]ast.Expr{}
	for _, element := range e.(*ast.CompositeLit).Elts {
		entry := element.(*ast.KeyValueExpr)
		fields[entry.Key.(*ast.Ident).Name] = entry.Value
	}
	old := "`--" + s.text(t, fields["key"]) + "`"
	if when := fields["when"]; when != nil {
		old += " " + known(t, conditions, when)
	}
	today := "dropped"
	if becomes := fields["becomes"]; becomes != nil {
		today = "`--" + s.text(t, becomes) + "`"
		if value := fields["value"]; value != nil {
			today += known(t, values, value)
		}
		if gate := fields["gate"]; gate != nil {
			today = "`--" + s.text(t, becomes) + "=" + s.text(t, gate) + "=…`"
		}
	}
	return fmt.Sprintf("| %s | %s | %s | %s |\n", program, old, today, s.text(t, fields["why"]))
}

func known(t *testing.T, words map[string]string, e ast.Expr) string {
	t.Helper()
	name, ok := e.(*ast.Ident)
	if !ok || words[name.Name] == "" {
		t.Fatalf("oldwords.go: find words for %v in test/docs/oldwords_test.go", e)
	}
	return words[name.Name]
}
