// Package text makes text from elsewhere safe to show.
//
// Use Line for every value that another process, another machine or a user
// supplied, such as the name of a cluster member, and Joined for an error that may
// have several lines. Colour the result with Painter, never its argument.
//
// The package imports the standard library only. It neither aligns nor truncates.
package text

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Line returns s as one printable line: each run of white space, control characters
// (terminal escapes begin with one) and format characters (they hide text or reverse
// its direction) becomes one space. An invalid byte, which some terminals take for a
// control character, becomes U+FFFD. Line(Line(s)) equals Line(s).
func Line(s string) string {
	words := strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) })
	return strings.ToValidUTF8(strings.Join(words, " "), string(unicode.ReplacementChar))
}

// Joined is Line for a text whose lines are separate statements: it puts "; " between
// them, or a space after a line that ends with a colon, and skips empty lines.
func Joined(s string) string {
	var b strings.Builder
	separator := ""
	for line := range strings.Lines(s) {
		if line = Line(line); line == "" {
			continue
		}
		b.WriteString(separator + line)
		separator = "; "
		if strings.HasSuffix(line, ":") {
			separator = " "
		}
	}
	return b.String()
}

var quoted = regexp.MustCompile("'.*'|`.*`|\".*\"")

// Unquoted is Joined for the error of a parser of a file that may hold a secret: "(a value)"
// stands in place of everything that is quoted, and of a printed Go value and all that follows. YAML
// quotes the value that it cannot use, and a password that begins with "*" is an alias to it;
// the parser of kubeconfigs prints all users where two have one name.
func Unquoted(s string) string {
	said := quoted.ReplaceAllString(Joined(s), "(a value)")
	if at := dumped.FindStringIndex(said); at != nil {
		said = strings.TrimSpace(said[:at[0]]) + " (a value)"
	}
	return said
}

// dumped is the begin of a Go value that fmt has printed: a list or a struct.
var dumped = regexp.MustCompile(`\[*&?\{|(?:^|\s)\[`)

// ShellWord returns s as one word of a shell's command line: unchanged if no shell would
// split or expand it, otherwise in quotes. What cannot be printed is written in bash's form
// $'\n', so that the result is one printable line.
func ShellWord(s string) string {
	printable := utf8.ValidString(s)
	for _, r := range s {
		printable = printable && unicode.IsPrint(r)
	}
	switch {
	case s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !isPlain(r) }):
		return s
	case printable:
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	var b strings.Builder
	b.WriteString("$'")
	for _, c := range []byte(s) {
		if c < 0x80 && isPlain(rune(c)) || c == ' ' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String() + "'"
}

// isPlain reports whether no shell does anything with the character.
func isPlain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%,=", r)
}

// Bytes returns a size for people: 12 B, 1.5 GiB.
func Bytes(n int64) string {
	f, unit := float64(n), 0
	for ; f >= 1024 && unit < 4; unit++ {
		f /= 1024
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %ciB", f, "BKMGT"[unit])
}

// Painter returns a function that colours s with an SGR code such as "31;1", or
// returns s unchanged if colours are off or the code is empty.
func Painter(on bool) func(code, s string) string {
	return func(code, s string) string {
		if !on || code == "" {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
}
