// Package text makes text from other programs safe to show.
package text

import (
	"strings"
	"unicode"
)

// Line returns s as one printable line: each run of white space and unprintable
// characters becomes one space. It keeps text from another program out of the
// layout and away from the terminal's controls.
func Line(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
}
