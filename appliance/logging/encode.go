package logging

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// encoder appends one line, including the newline.
type encoder func(b *bytes.Buffer, r slog.Record, component string, attrs []slog.Attr)

var encoders = map[string]encoder{
	Text:     encodeText,
	JSON:     encodeJSON,
	Terminal: func(b *bytes.Buffer, r slog.Record, c string, a []slog.Attr) { encodeTerminal(b, r, c, a, true) },
	Journal:  encodeJournal,
	Plain:    func(b *bytes.Buffer, r slog.Record, c string, a []slog.Attr) { encodeTerminal(b, r, c, a, false) },
}

// line encodes a record in at most MaxLine bytes. It encodes a longer record again
// with its texts cut, and if necessary without its attributes, so that a JSON line
// remains JSON. The attribute "truncated" then has the full length.
func (l *Logs) line(r slog.Record, component string, attrs []slog.Attr) []byte {
	var b bytes.Buffer
	l.encode(&b, r, component, attrs)
	full := b.Len()
	for keep := 2048; b.Len() > MaxLine; keep /= 4 {
		short := r
		short.Message = cut(r.Message, max(keep, 128))
		mark := slog.Int("truncated", full)
		b.Reset()
		if keep < 16 {
			l.encode(&b, short, cut(component, 128), []slog.Attr{mark})
			break
		}
		l.encode(&b, short, component, append(cutAll(attrs, keep), mark))
	}
	return b.Bytes()
}

func cut(s string, keep int) string {
	if len(s) <= keep {
		return s
	}
	for keep > 0 && !utf8.RuneStart(s[keep]) {
		keep--
	}
	return s[:keep] + "…"
}

func cutAll(attrs []slog.Attr, keep int) []slog.Attr {
	short := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		switch v := a.Value.Resolve(); v.Kind() {
		case slog.KindGroup:
			short[i] = slog.Attr{Key: a.Key, Value: slog.GroupValue(cutAll(v.Group(), keep)...)}
		case slog.KindString, slog.KindAny:
			short[i] = slog.String(a.Key, cut(text(v), keep))
		default:
			short[i] = a
		}
	}
	return short
}

// text returns a value as slog's text form prints it.
func text(v slog.Value) string {
	if v.Kind() == slog.KindAny {
		return fmt.Sprintf("%+v", v.Any())
	}
	return v.String()
}

// encodeText writes slog's text form, with the component before the message.
func encodeText(b *bytes.Buffer, r slog.Record, component string, attrs []slog.Attr) {
	if !r.Time.IsZero() {
		b.WriteString("time=")
		b.Write(r.Time.AppendFormat(b.AvailableBuffer(), "2006-01-02T15:04:05.000Z07:00"))
		b.WriteByte(' ')
	}
	b.WriteString("level=")
	b.WriteString(label(r.Level))
	b.WriteString(" component=")
	b.WriteString(quote(component))
	b.WriteByte(' ')
	rest := slog.NewRecord(time.Time{}, r.Level, r.Message, 0)
	rest.AddAttrs(attrs...)
	slog.NewTextHandler(b, &slog.HandlerOptions{Level: r.Level, ReplaceAttr: withoutLevel}).Handle(context.Background(), rest)
}

// withoutLevel drops the level that slog's handler adds.
func withoutLevel(groups []string, a slog.Attr) slog.Attr {
	if _, ok := ownLevel(groups, a); ok {
		return slog.Attr{}
	}
	return a
}

// encodeJournal writes a line for systemd's journal, which adds the time and takes the
// level from the number before the line (sd-daemon(3)).
func encodeJournal(b *bytes.Buffer, r slog.Record, component string, attrs []slog.Attr) {
	b.WriteString(Priority(r.Level))
	b.WriteString(printable(component))
	b.WriteString(": ")
	b.WriteString(printable(r.Message))
	if len(attrs) > 0 {
		b.WriteByte(' ')
		b.WriteString(pairs(r.Level, attrs))
	}
	b.WriteByte('\n')
}

// Priority returns the prefix by which systemd's journal recognises a line's level.
func Priority(at slog.Level) string {
	switch {
	case at >= slog.LevelError:
		return "<3>"
	case at >= slog.LevelWarn:
		return "<4>"
	case at >= slog.LevelInfo:
		return "<6>"
	default:
		return "<7>"
	}
}

func encodeJSON(b *bytes.Buffer, r slog.Record, component string, attrs []slog.Attr) {
	named := slog.NewRecord(r.Time, r.Level, r.Message, 0)
	named.AddAttrs(slog.String(componentKey, component))
	named.AddAttrs(attrs...)
	slog.NewJSONHandler(b, &slog.HandlerOptions{Level: r.Level, ReplaceAttr: withLabel}).Handle(context.Background(), named)
}

func withLabel(groups []string, a slog.Attr) slog.Attr {
	if level, ok := ownLevel(groups, a); ok {
		return slog.String(slog.LevelKey, label(level))
	}
	return a
}

func ownLevel(groups []string, a slog.Attr) (slog.Level, bool) {
	if len(groups) > 0 || a.Key != slog.LevelKey {
		return 0, false
	}
	level, ok := a.Value.Any().(slog.Level)
	return level, ok
}

// label returns a level as a line shows it: klog verbosities as V1, V2, ….
func label(at slog.Level) string {
	switch {
	case at >= slog.LevelInfo:
		return at.String()
	case at == slog.LevelDebug:
		return "DEBUG"
	default:
		return "V" + strconv.Itoa(-int(at))
	}
}

// encodeTerminal writes a line for people: the time of day, the component in a
// column, the message, then the attributes, dimmed.
func encodeTerminal(b *bytes.Buffer, r slog.Record, component string, attrs []slog.Attr, colour bool) {
	paint := func(code, s string) string {
		if !colour || code == "" {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
	b.WriteString(paint("2", r.Time.Format("15:04:05.000")))
	b.WriteByte(' ')
	b.WriteString(paint(levelColour(r.Level), fmt.Sprintf("%-5s", label(r.Level))))
	b.WriteByte(' ')
	b.WriteString(paint("36", fmt.Sprintf("%-23s", printable(component))))
	b.WriteByte(' ')
	b.WriteString(printable(r.Message))
	if len(attrs) > 0 {
		b.WriteByte(' ')
		b.WriteString(paint("2", pairs(r.Level, attrs)))
	}
	b.WriteByte('\n')
}

// pairs formats attributes as key=value.
func pairs(at slog.Level, attrs []slog.Attr) string {
	var b bytes.Buffer
	r := slog.NewRecord(time.Time{}, at, "", 0)
	r.AddAttrs(attrs...)
	slog.NewTextHandler(&b, &slog.HandlerOptions{Level: at, ReplaceAttr: onlyGiven}).Handle(context.Background(), r)
	return strings.TrimSuffix(b.String(), "\n")
}

// onlyGiven drops the level and the (empty) message that slog's handler adds.
func onlyGiven(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.MessageKey && a.Value.String() == "" {
		return slog.Attr{}
	}
	return withoutLevel(groups, a)
}

func levelColour(at slog.Level) string {
	switch {
	case at >= slog.LevelError:
		return "31;1"
	case at >= slog.LevelWarn:
		return "33"
	case at >= slog.LevelInfo:
		return ""
	default:
		return "2"
	}
}

func quote(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '=' || r == '"' || !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// printable quotes a message with characters that could control a terminal.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
