package found

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// option is one line of a unit file.
type option struct{ Section, Key, Value string }

// parseUnit reads a unit file as systemd does (systemd.syntax(7)). go-systemd's reader is no
// replacement: it refuses a comment within a continued line, a line of more than 2048 bytes
// and CRLF, all of which systemd reads.
func parseUnit(data []byte) (all []option) {
	section, line, continued := "", "", false
	for raw := range bytes.Lines(bytes.TrimPrefix(data, []byte("\ufeff"))) {
		text := strings.TrimRight(string(raw), "\r\n")
		trimmed := strings.TrimLeft(text, " \t")
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") || !continued && trimmed == "" {
			continue
		}
		if !continued {
			text = trimmed
		}
		// A here-document with a quoted word leaves two backslashes, which are meant as one.
		before, more := strings.CutSuffix(text, `\`)
		if more {
			before = strings.TrimSuffix(before, `\`)
		}
		if line, continued = line+before, more; more {
			line += " "
			continue
		}
		section, all = parseLine(section, line, all)
		line = ""
	}
	if continued {
		_, all = parseLine(section, line, all)
	}
	return all
}

func parseLine(section, line string, all []option) (string, []option) {
	line = strings.TrimSpace(line)
	if name, ok := strings.CutPrefix(line, "["); ok {
		return strings.TrimSuffix(name, "]"), all
	}
	key, value, found := strings.Cut(line, "=")
	if found && section != "" {
		all = append(all, option{section, strings.TrimSpace(key), strings.TrimSpace(value)})
	}
	return section, all
}

// splitWords takes a value apart as systemd does for ExecStart= and Environment=: blanks
// separate words, quotes keep them together, and a backslash begins an escape.
func splitWords(s string) (words []string, err error) {
	var word strings.Builder
	quote, in := byte(0), false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\':
			decoded, n := unescape(s[i:])
			word.WriteString(decoded)
			in = true
			i += n - 1
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '"' || c == '\'':
			quote, in = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if in {
				words = append(words, word.String())
			}
			word.Reset()
			in = false
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quotation mark %c is not closed", quote)
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

var simpleEscapes = map[byte]string{
	'a': "\a", 'b': "\b", 'f': "\f", 'n': "\n", 'r': "\r", 't': "\t", 'v': "\v", '\\': `\`, '"': `"`, '\'': "'", 's': " ",
}

// unescape reads the escape at the beginning of s, and returns how long it is. One that
// systemd does not know stays as it is.
func unescape(s string) (decoded string, n int) {
	if len(s) < 2 {
		return s, len(s)
	}
	if e, ok := simpleEscapes[s[1]]; ok {
		return e, 2
	}
	digits, base, begin := 0, 16, 2
	switch c := s[1]; {
	case c == 'x':
		digits = 2
	case c == 'u':
		digits = 4
	case c == 'U':
		digits = 8
	case c >= '0' && c <= '7':
		digits, base, begin = 3, 8, 1
	}
	if digits == 0 || len(s) < begin+digits {
		return s[:2], 2
	}
	v, err := strconv.ParseUint(s[begin:begin+digits], base, 32)
	switch {
	case err != nil || v == 0 || base == 8 && v > 255:
		return s[:2], 2
	case digits <= 3:
		return string([]byte{byte(v)}), begin + digits
	case v > utf8.MaxRune || !utf8.ValidRune(rune(v)):
		return s[:2], 2
	}
	return string(rune(v)), begin + digits
}

// specifiers replaces what begins with % (systemd.unit(5), "Specifiers"). unit is the name of
// the file.
func specifiers(s, unit string, host func() string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	name := strings.TrimSuffix(unit, ".service")
	prefix, instance, _ := strings.Cut(name, "@")
	fixed := map[byte]string{
		'%': "%", 'n': unit, 'N': name, 'p': prefix, 'i': instance, 't': "/run", 'S': "/var/lib", 'C': "/var/cache",
		'L': "/var/log", 'E': "/etc", 'T': "/tmp", 'V': "/var/tmp", 'h': "/root", 'u': "root", 'U': "0", 'g': "root", 'G': "0",
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i++; i == len(s) {
			b.WriteByte('%')
			break
		}
		value, known := fixed[s[i]]
		if s[i] == 'H' || s[i] == 'l' {
			value, known = host(), true
			if s[i] == 'l' {
				value, _, _ = strings.Cut(value, ".")
			}
		}
		if !known {
			return "", fmt.Errorf("the specifier %%%c is not known here", s[i])
		}
		b.WriteString(value)
	}
	return b.String(), nil
}

// expand replaces the variables of a command line: ${X} within a word, and $X as a word of its
// own, which becomes as many words as it has.
func expand(words, env []string) (out []string) {
	get := func(name string) string {
		value := ""
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				value = v
			}
		}
		return value
	}
	for _, w := range words {
		if name, ok := strings.CutPrefix(w, "$"); ok && isName(name) {
			out = append(out, strings.Fields(get(name))...)
			continue
		}
		var b strings.Builder
		for i := 0; i < len(w); i++ {
			rest := w[i:]
			switch {
			case strings.HasPrefix(rest, "$$"):
				b.WriteByte('$')
				i++
			case strings.HasPrefix(rest, "${"):
				name, _, closed := strings.Cut(rest[2:], "}")
				if !closed || !isName(name) {
					b.WriteByte('$')
					continue
				}
				b.WriteString(get(name))
				i += len(name) + 2
			default:
				b.WriteByte(w[i])
			}
		}
		out = append(out, b.String())
	}
	return out
}

func isName(s string) bool {
	for i, r := range s {
		if !(r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || i > 0 && r >= '0' && r <= '9') {
			return false
		}
	}
	return s != ""
}

// parseEnvironment reads a file of EnvironmentFile=: lines NAME=VALUE, with comments, quotes
// and continued lines (systemd.exec(5)).
func parseEnvironment(data []byte) (env []string) {
	line := ""
	for raw := range bytes.Lines(data) {
		text := strings.TrimRight(string(raw), "\r\n")
		if line == "" {
			text = strings.TrimLeft(text, " \t")
			if text == "" || text[0] == '#' || text[0] == ';' {
				continue
			}
		}
		if before, more := strings.CutSuffix(text, `\`); more {
			line += before
			continue
		}
		line += text
		name, value, found := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		line = ""
		if name = strings.TrimSpace(name); found && isName(name) {
			env = append(env, name+"="+unquote(strings.TrimSpace(value)))
		}
	}
	return env
}

// unquote removes the quotes and the backslashes of a value.
func unquote(s string) string {
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'' && c != quote:
			b.WriteByte(c)
		case c == '\\' && i+1 < len(s):
			i++
			if quote == '"' && !strings.ContainsRune("\"\\`$", rune(s[i])) {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i])
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == quote:
			quote = 0
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
