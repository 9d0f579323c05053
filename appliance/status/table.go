package status

import (
	"strings"
	"unicode/utf8"
)

const (
	leastSentence = 20 // characters that a column of sentences keeps, however narrow the terminal is
	mostLines     = 3  // of one sentence; what it means is said in a finding, and all of it in JSON
)

// table is rows of cells. write aligns them by their text, and prints shown, which
// may hold colours, in its place.
type table [][]cell

type cell struct {
	text, shown string
	sentence    bool // may go on in further lines; of a column, each cell below the header or none
}

func (t table) withoutEmptyColumn(i int) table {
	for _, row := range t[1:] {
		if row[i].text != "" {
			return t
		}
	}
	for n, row := range t {
		t[n] = append(row[:i], row[i+1:]...)
	}
	return t
}

// widths returns the width of each column.
func (t table) widths() []int {
	widths := make([]int, len(t[0]))
	for _, row := range t {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	return widths
}

// fit wraps the sentences, so that the table is no wider than width if the other columns leave
// room; a width of 0 is none. Columns of sentences share the room; a short one takes no more than it needs.
func (t table) fit(width int) table {
	if len(t) < 2 || width == 0 {
		return t
	}
	room, sentences := width, 0
	widths := t.widths()
	for i, w := range widths {
		room -= 2
		if t[1][i].sentence {
			sentences++
		} else {
			room -= w
		}
	}
	room += 2 // none after the last column
	if room <= 0 || sentences == 0 {
		return t // the terminal breaks the lines as it can
	}
	for i := range widths {
		if t[1][i].sentence && widths[i] <= room/sentences {
			room, sentences = room-widths[i], sentences-1
		}
	}
	for i, w := range widths {
		if t[1][i].sentence && sentences > 0 && w > room/sentences {
			widths[i] = max(room/sentences, leastSentence, utf8.RuneCountInString(t[0][i].text))
		}
	}
	var fitted table
	for _, row := range t {
		fitted = append(fitted, wrapRow(row, widths)...)
	}
	return fitted
}

// wrapRow returns a row as one or more, the further ones with what is left of sentences.
func wrapRow(row []cell, widths []int) (rows table) {
	for i, c := range row {
		lines := []string{c.text}
		if c.sentence && utf8.RuneCountInString(c.text) > widths[i] {
			lines, c.shown = wrap(c.text, widths[i]), ""
		}
		for n, line := range lines {
			if n == len(rows) {
				rows = append(rows, make([]cell, len(row)))
			}
			rows[n][i] = cell{text: line, sentence: c.sentence}
			if n == 0 {
				rows[n][i].shown = c.shown
			}
		}
	}
	return rows
}

// wrap returns a text as a few lines of at most n characters. It cuts a word only if it is longer.
func wrap(s string, n int) []string {
	lines := wrapAll(s, n)
	if len(lines) <= mostLines {
		return lines
	}
	last := []rune(lines[mostLines-1])
	return append(lines[:mostLines-1], string(last[:min(len(last), n-1)])+"…")
}

func wrapAll(s string, n int) (lines []string) {
	line, length := "", 0
	for word := range strings.FieldsSeq(s) {
		size := utf8.RuneCountInString(word)
		switch {
		case length == 0:
			line, length = word, size
		case length+1+size <= n:
			line, length = line+" "+word, length+1+size
		default:
			lines = append(lines, line)
			line, length = word, size
		}
		for length > n {
			runes := []rune(line)
			lines = append(lines, string(runes[:n]))
			line, length = string(runes[n:]), length-n
		}
	}
	return append(lines, line)
}

func (t table) write(b *strings.Builder) {
	widths := t.widths()
	for _, row := range t {
		var line strings.Builder
		for i, c := range row {
			if c.shown == "" {
				c.shown = c.text
			}
			line.WriteString(c.shown + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}
