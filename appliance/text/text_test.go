package text

import "testing"

func TestLine(t *testing.T) {
	for s, want := range map[string]string{
		"":                         "",
		"plain":                    "plain",
		"  two\n\tlines \n":        "two lines",
		"\x1b[31mred\x1b[0m":       "[31mred [0m",
		"Größe: 3 µs":              "Größe: 3 µs",
		"no\u00a0break\u2028space": "no break space",
	} {
		if got := Line(s); got != want {
			t.Errorf("Line(%q): got %q, want %q", s, got, want)
		}
	}
}
