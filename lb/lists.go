package lb

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// SplitLists takes the lists apart that people write as one element: separated by commas,
// spaces or lines, in brackets, in quotes, with dashes or with a comma at the end. It
// returns a list with one listener, backend, source or proxy in each element, as Config
// wants them. Options stay with their listener or backend. An element that is empty stays, to be
// refused: a variable without a value may be behind it.
func (c *Config) SplitLists() {
	for _, list := range []*[]string{&c.Sources, &c.AcceptProxyFrom} {
		*list = splitList(*list, func(string) bool { return true })
	}
	c.Listen = splitList(c.Listen, beginsListener)
	for i := len(c.Listen) - 1; i > 0; i-- {
		if c.Listen[i] == acceptProxy { // behind a comma: no address, so it belongs to the one before
			c.Listen[i-1] += " " + acceptProxy
			c.Listen = slices.Delete(c.Listen, i, i+1)
		}
	}
	c.Backends = splitList(c.Backends, beginsBackend)
}

// beginsBackend reports whether a word after a backend is the next one, and not an option.
func beginsBackend(word string) bool {
	return strings.ContainsAny(word, ":._") && !strings.Contains(word, "=")
}

// beginsListener reports whether a word after a listener is the next one, and not an option: a
// port alone is one that will be refused.
func beginsListener(word string) bool {
	_, err := strconv.ParseUint(word, 10, 64)
	return err == nil || strings.ContainsAny(word, ":.")
}

// splitList takes each element apart; begins decides which words after the first begin an
// element of their own.
func splitList(list []string, begins func(word string) bool) []string {
	all := list[:0:0]
	if list != nil {
		all = []string{}
	}
	for _, text := range list {
		text = strings.TrimSpace(withoutBrackets(strings.TrimSpace(text)))
		parts := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
		text = strings.TrimSuffix(strings.Join(trimmed(parts), ","), ",")
		for part := range strings.SplitSeq(text, ",") {
			all = append(all, elementsOf(part, begins)...)
		}
	}
	return all
}

// trimmed returns lines without space and commas at the ends, dashes in front, and empty
// ones.
func trimmed(lines []string) (all []string) {
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if l == "-" {
			continue
		}
		l = strings.TrimSpace(strings.TrimPrefix(l, "- "))
		if len(lines) > 1 {
			l = strings.TrimSpace(strings.TrimSuffix(l, ","))
		}
		if l != "" {
			all = append(all, l)
		}
	}
	return all
}

// elementsOf takes apart what stands between two commas.
func elementsOf(part string, begins func(word string) bool) (all []string) {
	last := ""
	for _, word := range strings.Fields(part) {
		bare := strings.Trim(word, `"'`)
		if len(all) > 0 && (last == "weight" || !begins(bare)) {
			all[len(all)-1] += " " + bare
		} else {
			all = append(all, bare)
		}
		last = bare
	}
	if len(all) == 0 {
		return []string{""}
	}
	return all
}

// withoutBrackets removes the brackets around a list, but not those of an IPv6 address.
func withoutBrackets(s string) string {
	if !strings.HasPrefix(s, "[") || !strings.HasSuffix(s, "]") {
		return s
	}
	depth := 0
	for i, r := range s {
		switch r {
		case '[':
			depth++
		case ']':
			depth--
		}
		if depth == 0 && i < len(s)-1 {
			return s // the first bracket ends before the last one
		}
	}
	inner := s[1 : len(s)-1]
	if _, err := netip.ParseAddr(inner); err == nil {
		return s
	}
	return inner
}

// usualPort is the port of an API server, for advice.
const usualPort = "6443"

// meant returns what was probably meant by an element that is refused, or "". ok decides
// whether something can be meant.
func meant(s string, ok func(string) bool) string {
	if _, rest, found := strings.Cut(s, "://"); found {
		s, _, _ = strings.Cut(rest, "/")
	}
	if s == "" {
		return ""
	}
	host := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	guesses := []string{s}
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		guesses = append(guesses, ":"+s)
	}
	if i := strings.LastIndex(s, ":"); i >= 0 {
		if _, err := netip.ParseAddr(s[:i]); err == nil && len(s)-i > 3 { // 443 or more: ::1 has no port
			guesses = append(guesses, net.JoinHostPort(s[:i], s[i+1:]))
		}
		if s[:i] == "*" {
			guesses = append(guesses, s[i:])
		}
	}
	for _, g := range append(guesses, net.JoinHostPort(host, usualPort)) {
		if ok(g) {
			return g
		}
	}
	return ""
}

// didYouMean is advice with what was probably meant, or else the general one.
func didYouMean(guess, general string) string {
	if guess == "" {
		return general
	}
	return "did you mean " + guess + "?"
}
