package manifest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("b.yaml", "---\n# nothing\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n")
	write("a.json", `{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a1"}}, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a2"}}]}`)
	write("c.yml", "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: c}\n")
	write("d.txt", "no: object\n")
	if err := os.Mkdir(filepath.Join(dir, "e.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		keep func(Object) bool
		want []string
	}{
		{All, []string{"a1", "a2", "b", "c"}},
		{Definitions, []string{"c"}},
	} {
		all, err := Read([]string{dir}, c.keep)
		var got []string
		for _, o := range all {
			got = append(got, o.GetName())
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("got %q, %v, want %q", got, err, c.want)
		}
	}
	if all, err := Read([]string{filepath.Join(dir, "b.yaml")}, All); err != nil || len(all) != 1 || !strings.HasSuffix(all[0].String(), "b.yaml:2: ConfigMap b") {
		t.Errorf("got %v, %v", all, err)
	}
}

// What is no object may be a file of secrets, of which no error shows anything.
func TestReadQuotesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "values.yaml")
	for _, text := range []string{"password: s3cret\n", "kind: List\napiVersion: v1\nitems: [{password: s3cret}]\n", "- s3cret\n", "s3cret\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Read([]string{file}, All)
		if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "values.yaml:1: ") {
			t.Errorf("%q: got %v, want its place alone", text, err)
		}
	}
}

func TestReadNamesAllProblems(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "bad.yaml")
	text := "a: b: c\n---\nkind: X\n---\napiVersion: v1\nkind: Secret\n---\napiVersion: v1\nkind: Secret\nkind: Secret\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Read([]string{file, "/nowhere", empty}, All)
	if err == nil {
		t.Fatal("got no error")
	}
	lines := strings.Split(err.Error(), "\n")
	for i, want := range []string{"bad.yaml:1: ", "bad.yaml:2: an object without apiVersion and kind", "bad.yaml:3: Secret without metadata.name", "bad.yaml:4: ", "/nowhere", "empty: has no object"} {
		if i >= len(lines) || !strings.Contains(lines[i], want) {
			t.Fatalf("got %q, want %q in line %d", lines, want, i+1)
		}
	}
}
