package config

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"kthwd/test/harness"
)

// The reference is generated from the table, so it cannot be out of date.
func TestReference(t *testing.T) {
	harness.Golden(t, "../../docs/configuration.md", reference())
}

func TestUsage(t *testing.T) {
	harness.Golden(t, "testdata/usage.golden", []byte(NewLoader().Usage(100)))
}

// The usage text of a role has the flags of the role and no other.
func TestUsageOfRole(t *testing.T) {
	for _, role := range []string{RoleController, RoleLB} {
		l := NewLoader()
		text := l.Usage(100, role)
		for _, name := range l.Names() {
			got := strings.Contains(text, "\n  --"+name+" ") || strings.Contains(text, "\n  --"+name+"\n")
			if want := slices.Contains(l.Names(role), name); got != want {
				t.Errorf("role %s: --%s is in the text: %t, want %t", role, name, got, want)
			}
		}
		if strings.Contains(text, "(--role=") {
			t.Errorf("the text of role %s names roles at its groups", role)
		}
	}
}

func reference() []byte {
	var b bytes.Buffer
	b.WriteString(`<!-- Generated from the table in appliance/config/flags.go by "make golden". Do not edit. -->

# Configuration

Each setting is a flag, and a key of the same name in a YAML file.
The file overrides the default, and the flag overrides the file; a flag replaces the file's whole value, lists included.
The file is the one given with ` + "`--config`, else `" + DefaultFile + "`" + ` if it exists. Unknown keys, duplicate keys and
values of the wrong type are refused with their line; all problems are reported at once.
A relative path in the file starts from the file's directory, one in a flag from the working directory.

` + "`kthwd config`" + ` prints the resulting configuration, each value with its origin. Its
output can be used as a file.

`)
	l := NewLoader()
	for _, group := range groups {
		fmt.Fprintf(&b, "## %s\n\n| key and flag | default | role | meaning |\n|---|---|---|---|\n", group)
		for _, s := range l.table {
			if s.group == group {
				fmt.Fprintf(&b, "| `%s`%s | %s | %s | %s |\n", s.name, argCell(s), defaultCell(s), s.role, s.help)
			}
		}
		b.WriteByte('\n')
	}
	b.WriteString("## Examples\n\nEvery key of a role with its default; keys without one are shown empty.\n")
	for _, role := range []string{RoleController, RoleLB} {
		fmt.Fprintf(&b, "\n```yaml\n%s```\n", example(l, role))
	}
	b.WriteString("\nA list may be written in either form:\n\n```yaml\nkube-apiserver-arg:\n- event-ttl=2h\n- v=4\nsubject-alt-name: [lb.example.com, 10.0.0.20]\n```\n")
	return b.Bytes()
}

func argCell(s setting) string {
	if s.arg == "" {
		return ""
	}
	return " *" + s.arg + "*"
}

func defaultCell(s setting) string {
	if v := s.yaml(); v != `""` && v != "[]" {
		return "`" + strings.Trim(v, `[]`) + "`"
	}
	return ""
}

// example returns a file of one role, with a value for settings that have no default.
func example(l *Loader, role string) string {
	var b strings.Builder
	required := map[string]string{"role": role, "backend": "[10.0.1.73:6443, 10.0.1.35:6443]"}
	for _, s := range l.table {
		value := s.yaml()
		if v, ok := required[s.name]; ok {
			value = v
		}
		if s.of([]string{role}) && s.name != "config" {
			fmt.Fprintf(&b, "%s: %s\n", s.name, value)
		}
	}
	return b.String()
}

// The examples of the reference are files that kthwd accepts.
func TestReferenceExample(t *testing.T) {
	for _, role := range []string{RoleController, RoleLB} {
		text := example(NewLoader(), role)
		if !strings.Contains(string(reference()), text) {
			t.Errorf("the reference lacks the example of role %s", role)
		}
		if _, err := load(t, text); err != nil {
			t.Errorf("%v\n%s", err, text)
		}
	}
}
