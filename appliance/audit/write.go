package audit

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"kthwd/appliance/text"
)

// Counts are the numbers of results by verdict.
type Counts struct {
	Pass       int `json:"pass"`
	Equivalent int `json:"equivalent"` // of those that pass
	Fail       int `json:"fail"`
	Automated  int `json:"automatedFail"` // of those that fail
	Manual     int `json:"manual"`
	NA         int `json:"notApplicable"`
}

// Count counts the results of a standard.
func Count(all []Result, standard string) (n Counts) {
	for _, r := range all {
		if r.Standard != standard {
			continue
		}
		switch r.Verdict {
		case Pass:
			n.Pass++
			if r.Equivalent {
				n.Equivalent++
			}
		case Fail:
			n.Fail++
			if r.Automated {
				n.Automated++
			}
		case Manual:
			n.Manual++
		case NA:
			n.NA++
		}
	}
	return n
}

func (n Counts) String() string {
	return fmt.Sprintf("%d pass (%d in another way), %d fail (%d automated), %d manual, %d n/a", n.Pass, n.Equivalent, n.Fail, n.Automated, n.Manual, n.NA)
}

// Text writes a table for each standard. paint colours a text; see text.Painter.
func Text(w io.Writer, all []Result, paint func(code, s string) string) error {
	var b bytes.Buffer
	standard := ""
	for i, r := range all {
		if r.Standard != standard {
			if i > 0 {
				b.WriteByte('\n')
			}
			standard = r.Standard
			fmt.Fprintf(&b, "%s: %s\n", Title(standard), Count(all, standard))
		}
		line := fmt.Sprintf("%-50s  %s", r.Title, text.Line(r.Decides))
		fmt.Fprintf(&b, "  %-9s %s  %s\n", r.ID, paint(colour[r.Verdict], fmt.Sprintf("%-6s", r.word())), strings.TrimRight(line, " "))
		if r.Why != "" && (r.Verdict != Pass || r.Equivalent) {
			fmt.Fprintf(&b, "                    why: %s\n", text.Line(r.Why))
		}
		if r.Fix != "" {
			fmt.Fprintf(&b, "                    fix: %s\n", text.Line(r.Fix))
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// colour of each verdict, as an SGR code.
var colour = map[Verdict]string{Pass: "32", Fail: "31", Manual: "33"}

// word is the verdict in the table; "pass*" passes in another way than the rule's words.
func (r Result) word() string {
	if r.Equivalent {
		return string(r.Verdict) + "*"
	}
	return string(r.Verdict)
}
