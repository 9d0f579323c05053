package explain

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// plain reports whether neither a shell nor systemd gives the character a meaning.
func plain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@,=", r)
}

// shellWord returns s as one word for a POSIX shell. What a terminal could take for a command
// is written as a command substitution of printf(1): sh has no $'…', unlike bash.
func shellWord(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	var b strings.Builder
	quoted := false
	quote := func(on bool) {
		if on != quoted {
			b.WriteByte('\'')
		}
		quoted = on
	}
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == '\'':
			quote(false)
			b.WriteString(`\'`)
		case r == '\n' || r == '\t' || unicode.IsPrint(r) && !(r == utf8.RuneError && size == 1):
			quote(true)
			b.WriteString(s[:size])
		default:
			quote(false)
			b.WriteString(`"$(printf '`)
			for _, c := range []byte(s[:size]) {
				fmt.Fprintf(&b, `\%03o`, c)
			}
			b.WriteString(`')"`)
		}
		s = s[size:]
	}
	quote(false)
	if b.Len() == 0 {
		return "''"
	}
	return b.String()
}

// unitWord returns s as one word of ExecStart=, where % begins a specifier and $ a variable
// (systemd.service(5), systemd.syntax(7)).
func unitWord(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteString(s[:size])
		case r == '%' || r == '$':
			b.WriteString(s[:size] + s[:size])
		case unicode.IsPrint(r) && !(r == utf8.RuneError && size == 1):
			b.WriteString(s[:size])
		default:
			for _, c := range []byte(s[:size]) {
				fmt.Fprintf(&b, `\x%02x`, c)
			}
		}
		s = s[size:]
	}
	return b.String() + `"`
}
