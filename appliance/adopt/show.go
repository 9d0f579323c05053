package adopt

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"kthwd/appliance/text"
)

// column is the width up to which flags are aligned.
const column = 56

// Text writes a plan for a person: each flag of each program with its verdict, what was
// checked, and kthwd.yaml.
func Text(w io.Writer, p *Plan) error {
	var b bytes.Buffer
	for _, pp := range p.Programs {
		fmt.Fprintf(&b, "%s, of %s\n", pp.Name, text.Line(pp.From))
		for _, l := range pp.Lines {
			what := l.Verdict
			if l.Becomes != "" {
				what += "  " + text.Line(l.Becomes)
			}
			if l.Why != "" {
				what += "  (" + text.Line(l.Why) + ")"
			}
			fmt.Fprintf(&b, "  %-*s  %s\n", column, text.Line(l.Flag), what)
		}
		if len(pp.Adds) > 0 {
			fmt.Fprintf(&b, "  kthwd adds --%s\n", strings.Join(pp.Adds, ", --"))
		}
		b.WriteByte('\n')
	}
	for _, c := range p.Checked {
		fmt.Fprintf(&b, "checked: %s\n", text.Line(c))
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "note: %s\n", text.Line(n))
	}
	if p.File != nil && len(p.Problems) == 0 {
		b.WriteString("\nkthwd.yaml:\n")
		for line := range strings.Lines(string(p.File)) {
			indent := len(line) - len(strings.TrimLeft(line, " "))
			fmt.Fprintf(&b, "  %s%s\n", line[:indent], text.Line(strings.TrimSuffix(line, "\n")))
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}
