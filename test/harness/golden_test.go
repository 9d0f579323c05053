package harness

import "testing"

func TestDifference(t *testing.T) {
	for _, c := range []struct {
		a, b     string
		line     int
		inA, inB string
	}{
		{"a\nb\n", "a\nb\n", 0, "", ""},
		{"a\nb\nc\n", "a\nB\nc\n", 2, "b\n", "B\n"},
		{"a\nc\n", "a\nb\nc\n", 2, "", "b\n"},
		{"a\nb\n", "", 1, "a\nb\n", ""},
		{"a\na\n", "a\n", 2, "a\n", ""},
		{"a", "a\n", 1, "a", "a\n"},
	} {
		if line, inA, inB := difference(c.a, c.b); line != c.line || inA != c.inA || inB != c.inB {
			t.Errorf("%q, %q: got %d, %q, %q; want %d, %q, %q", c.a, c.b, line, inA, inB, c.line, c.inA, c.inB)
		}
	}
}
