package text

import (
	"os/exec"
	"strings"
	"testing"
	"unicode"
)

func TestLine(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"empty", "", ""},
		{"plain", "etcd: no leader", "etcd: no leader"},
		{"letters of any script", "Zürich, 東京, 5 µs…", "Zürich, 東京, 5 µs…"},
		{"lines", "  two\n\tlines \n", "two lines"},
		{"only white space", " \n\t\r\n", ""},
		{"carriage return", "good\rbad", "good bad"},
		{"tab", "c0\tvoter", "c0 voter"},
		{"no-break and line separators", "a\u00a0b\u2028c\u0085d", "a b c d"},
		{"colours", "\x1b[31mred\x1b[0m", "[31mred [0m"},
		{"window title", "ev\x1b]0;pwned\x07", "ev ]0;pwned"},
		{"C1 control", "\u009b2J", "2J"},
		{"the same as a byte", "\x9b2J", "\ufffd2J"},
		{"delete and backspace", "a\x7f\bb", "a b"},
		{"NUL", "a\x00b", "a b"},
		{"right-to-left override", "c0\u202e1c", "c0 1c"},
		{"bidi isolates", "\u2066x\u2069", "x"},
		{"zero width", "c\u200b0\ufeff", "c 0"},
		{"tag character", "c0\U000e0041", "c0"},
		{"forged row of a table", "ev\x1b[2Jil\nc0 10.0.0.1 voter up", "ev [2Jil c0 10.0.0.1 voter up"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Line(tt.in); got != tt.want {
				t.Errorf("Line(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

func TestJoined(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"empty", "\n \n", ""},
		{"one line", "etcd: no leader", "etcd: no leader"},
		{"lines", "one\n\ttwo\r\n\n  three \n", "one; two; three"},
		{"a line that introduces the next", "lease lost:\n  timeout\n  again", "lease lost: timeout; again"},
		{"escapes", "one\x1b[2J\n\u202etwo", "one [2J; two"},
		{"a line of control characters", "one\n\x1b\x07\ntwo", "one; two"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Joined(tt.in); got != tt.want {
				t.Errorf("Joined(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

// Any text becomes one printable line, which a second call does not change.
func FuzzLine(f *testing.F) {
	for _, s := range []string{"", "\x1b]0;x\x07", "a\r\nb", "\u202e", "\xff\xfe", " \u2029 ", "\v\f", "a:\n;"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { checkLine(t, s) })
}

func TestLineOfEveryRune(t *testing.T) {
	for r := range rune(1 << 16) { // the basic plane
		checkLine(t, "a"+string(r)+"b"+string(r))
	}
}

func checkLine(t *testing.T, s string) {
	t.Helper()
	for name, f := range map[string]func(string) string{"Line": Line, "Joined": Joined} {
		got := f(s)
		if i := strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%s(%q) = %q: not printable at byte %d", name, s, got, i)
		}
		if again := f(got); again != got {
			t.Errorf("%s(%q) = %q, and again %q", name, s, got, again)
		}
	}
}

func TestUnquoted(t *testing.T) {
	for in, want := range map[string]string{
		"yaml: unknown anchor 's3cret' referenced":                                              "yaml: unknown anchor (a value) referenced",
		"yaml: unmarshal errors:\n  line 1: cannot unmarshal !!str `it's s3...` into T":         "yaml: unmarshal errors: line 1: cannot unmarshal !!str (a value) into T",
		"no kind \"s3\ncret\" is registered":                                                    "no kind (a value) is registered",
		"mapping key \"a\" already defined, 's3`cret'":                                          "mapping key (a value) already defined, (a value)",
		"line 3: did not find expected key":                                                     "line 3: did not find expected key",
		"converting *[]T into *map[string]T: duplicate name \"\" in list: [{ {s3cret []}} {b}]": "converting *[]T into *map[string]T: duplicate name (a value) in list: (a value)",
		"got &{s3cret}":      "got (a value)",
		"got [s3cret other]": "got (a value)",
	} {
		if got := Unquoted(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestPainter(t *testing.T) {
	if got := Painter(false)("31", "x"); got != "x" {
		t.Errorf("off: got %q", got)
	}
	if got := Painter(true)("31;1", "x"); got != "\x1b[31;1mx\x1b[0m" {
		t.Errorf("on: got %q", got)
	}
	if got := Painter(true)("", "x"); got != "x" {
		t.Errorf("no code: got %q", got)
	}
}

// TestShellWord asks the real shell: each word must come back as it was, and take one line.
func TestShellWord(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	for _, s := range []string{
		"/var/lib/kubernetes/admin.kubeconfig", "", "/a b", "/it's", "$x", "`id`", "$(id)", "a\\b", "a\"b", "*", "~", "#", "!x",
		"a\nb", "'\n'", "\xff\xfe", "\x1b[31m", "a\u202eb", "\t\\", "ä", "-n",
	} {
		word := ShellWord(s)
		if Line(word) != word {
			t.Errorf("%q: %q is not one printable line", s, word)
		}
		out, err := exec.CommandContext(t.Context(), bash, "-c", "printf '<%s>' "+word).Output()
		if err != nil || string(out) != "<"+s+">" {
			t.Errorf("%q: %s gives %q, %v", s, word, out, err)
		}
	}
	if got := ShellWord("/var/lib/kubernetes/admin.kubeconfig"); got != "/var/lib/kubernetes/admin.kubeconfig" {
		t.Errorf("a plain path: got %s", got)
	}
}
