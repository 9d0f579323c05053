// Package unitfile reads the syntax of systemd's files: units (systemd.syntax(7)), the words of their settings
// with quotes, escapes, specifiers and variables, and files of EnvironmentFile=.
//
//	for _, o := range unitfile.Parse(data) {
//		words, err := unitfile.Words(o.Value)
//	}
//
// It reads no file and knows no setting: a caller expands specifiers before it takes a value apart, and
// variables after that.
package unitfile

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Option is one line of a unit file, in its section.
type Option struct{ Section, Key, Value string }

// Parse reads a unit file as systemd does (systemd.syntax(7)). go-systemd's reader is no
// replacement: it refuses a comment within a continued line, a line of more than 2048 bytes
// and CRLF, all of which systemd reads.
func Parse(data []byte) (all []Option) {
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

func parseLine(section, line string, all []Option) (string, []Option) {
	line = strings.TrimSpace(line)
	if name, ok := strings.CutPrefix(line, "["); ok {
		return strings.TrimSuffix(name, "]"), all
	}
	key, value, found := strings.Cut(line, "=")
	if found && section != "" {
		all = append(all, Option{section, strings.TrimSpace(key), strings.TrimSpace(value)})
	}
	return section, all
}

// Words takes a value apart as systemd does for ExecStart= and Environment=: blanks
// separate words, quotes keep them together, and a backslash begins an escape.
func Words(s string) (words []string, err error) {
	words, open := split(s, unescape)
	if open != 0 {
		return nil, fmt.Errorf("a quotation mark %c is not closed", open)
	}
	return words, nil
}

// split returns the words, and the quotation mark that is not closed, or 0. escape reads the escape at the
// beginning of its argument, and returns how long it is.
func split(s string, escape func(string) (decoded string, length int)) (words []string, open byte) {
	var word strings.Builder
	in := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\':
			decoded, n := escape(s[i:])
			word.WriteString(decoded)
			in = true
			i += n - 1
		case open != 0 && c == open:
			open = 0
		case open != 0:
			word.WriteByte(c)
		case c == '"' || c == '\'':
			open, in = c, true
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
	if in {
		words = append(words, word.String())
	}
	return words, open
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

// Specifiers replaces what begins with % (systemd.unit(5), "Specifiers"). unit is the name of
// the file.
func Specifiers(s, unit string, host func() string) (string, error) {
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

// splitValue takes the value of a variable apart as Words does, but a backslash keeps the next character as
// it is, and a quotation mark need not be closed.
func splitValue(s string) (words []string) {
	words, _ = split(s, func(s string) (string, int) { return s[1:min(2, len(s))], min(2, len(s)) })
	return words
}

// Expand replaces the variables of a command line: ${X} within a word, and $X as a word of its
// own, which becomes as many words as its value has, without their quotes.
func Expand(words, env []string) (out []string) {
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
			out = append(out, splitValue(get(name))...)
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

// newline and blank are the characters between lines, and within one.
const newline, blank = "\n\r", " \t"

// Environment reads a file of EnvironmentFile= as systemd does (systemd.exec(5), basic/env-file.c):
// lines NAME=VALUE and comments, which a backslash continues. Quotes count where a value, or the next part of
// one, begins; elsewhere they are characters of it, and $NAME in ExecStart= takes them for quotes.
func Environment(data []byte) (env []string) {
	for len(data) > 0 {
		line := data
		if end := bytes.IndexAny(data, newline); end >= 0 {
			line = data[:end]
		}
		name, _, found := bytes.Cut(line, []byte("="))
		switch comment := bytes.TrimLeft(line, blank); {
		case len(comment) > 0 && (comment[0] == '#' || comment[0] == ';'):
			data = afterComment(data)
		case !found:
			data = data[min(len(line)+1, len(data)):]
		default:
			var value string
			value, data = environmentValue(data[len(name)+1:])
			if key := strings.Trim(string(name), blank); isName(key) {
				env = append(env, key+"="+value)
			}
		}
	}
	return env
}

// afterComment returns what follows a comment.
func afterComment(data []byte) []byte {
	for i := 0; i < len(data); i++ {
		switch {
		case data[i] == '\\':
			i++
		case strings.IndexByte(newline, data[i]) >= 0:
			return data[i+1:]
		}
	}
	return nil
}

// environmentValue reads a value up to the end of its line, and returns what follows.
func environmentValue(data []byte) (value string, rest []byte) {
	var b []byte
	part, kept := true, 0 // a part begins here; the length of b without the blanks that the end of the line cuts off
	i := 0
	for ; i < len(data) && strings.IndexByte(newline, data[i]) < 0; i++ {
		switch c := data[i]; {
		case part && (c == '"' || c == '\''):
			var quoted []byte
			quoted, i = quotedPart(data, i)
			b = append(b, quoted...)
			kept = len(b)
		case c == '\\':
			part = false
			if i++; i < len(data) && strings.IndexByte(newline, data[i]) < 0 {
				b = append(b, data[i])
				kept = len(b)
			}
		case strings.IndexByte(blank, c) >= 0:
			if !part {
				b = append(b, c)
			}
		default:
			part = false
			b = append(b, c)
			kept = len(b)
		}
	}
	return string(b[:kept]), data[min(i+1, len(data)):]
}

// quotedPart reads the part of a value whose quotation mark is at data[begin], and returns where it ends.
func quotedPart(data []byte, begin int) (part []byte, end int) {
	quote := data[begin]
	for i := begin + 1; i < len(data); i++ {
		switch c := data[i]; {
		case c == quote:
			return part, i
		case c == '\\' && quote == '"' && i+1 < len(data):
			if i++; strings.IndexByte("\"\\`$", data[i]) < 0 && data[i] != '\n' {
				part = append(part, '\\')
			}
			if data[i] != '\n' {
				part = append(part, data[i])
			}
		default:
			part = append(part, c)
		}
	}
	return part, len(data)
}
