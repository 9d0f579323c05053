package explain

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"kthwd/appliance/program"
	"kthwd/appliance/text"
)

// column is the width up to which flags are aligned; longer ones stand out.
const column = 64

// Text writes a program for a person: its flags with their origins, what it lacks, and what
// no flag shows.
func Text(w io.Writer, p Program) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s, in place of the guide's %s\n", p.Name, p.Step)
	width := 0
	for _, f := range p.Flags {
		if n := len(f.line()); n <= column {
			width = max(width, n)
		}
	}
	for _, f := range p.Flags {
		fmt.Fprintf(&b, "  %-*s  %s\n", width, f.line(), f.remark())
	}
	for _, a := range p.LeftOut {
		fmt.Fprintf(&b, "without %s, %s\n", text.Line(a.Flag), a.remark())
	}
	for _, s := range p.Besides {
		fmt.Fprintf(&b, "no flag: %s\n", s)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func (f Flag) arg() string { return program.Arg{Key: f.Key, Value: f.Value}.String() }

func (f Flag) line() string { return text.Line(f.arg()) }

// origin is the origin with its place.
func (f Flag) origin() string {
	switch {
	case f.Where == "":
		return f.Origin
	case f.Origin == OriginProfile:
		return f.Origin + " " + f.Where
	}
	return f.Origin + ", " + text.Line(f.Where)
}

// remark is the origin, and the value that would be there without it.
func (f Flag) remark() string {
	s := f.origin()
	switch {
	case f.Instead != "":
		s += "; kthwd's own: " + text.Line(f.Instead)
	case f.Guide != "" && !f.Same:
		s += "; the guide: " + f.Guide
	}
	return s
}

func (a Absent) remark() string {
	if a.Of == OriginGuide {
		return "which the guide has"
	}
	return "which kthwd sets " + text.Line(a.Why)
}

// Diff writes the difference between the guide's command line and the program's, in the form
// of diff -u: "-" for the guide's flags, "+" for those in use, with the origin of each that the
// guide does not have.
func Diff(w io.Writer, p Program) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "--- %s of the guide: %s\n+++ %s in kthwd\n", p.Name, p.Step, p.Name)
	used := make([]bool, len(p.Flags))
	plus := func(i int) {
		used[i] = true
		f := p.Flags[i]
		fmt.Fprintf(&b, "+%s", f.line())
		if f.Origin != OriginGuide {
			fmt.Fprintf(&b, "  # %s", f.origin())
		}
		b.WriteByte('\n')
	}
	for _, g := range program.GuideFlags(p.Name) {
		i := slices.IndexFunc(p.Flags, func(f Flag) bool { return f.Key == g.Key })
		switch {
		case i < 0:
			fmt.Fprintf(&b, "-%s\n", g.Text)
		case p.Flags[i].Same && strings.HasPrefix(g.Text, "--"+g.Key):
			used[i] = true
			fmt.Fprintf(&b, " %s\n", p.Flags[i].line())
		default:
			fmt.Fprintf(&b, "-%s\n", g.Text)
			for ; i < len(p.Flags); i++ {
				if p.Flags[i].Key == g.Key {
					plus(i)
				}
			}
		}
	}
	for i := range p.Flags {
		if !used[i] {
			plus(i)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// Shell writes the command line for a POSIX shell. Its words are the program's arguments to
// the byte.
func Shell(w io.Writer, p Program) error {
	return p.command(w, p.Name, shellWord)
}

// Unit writes a systemd unit with the program's command line, for people and scanners to
// read: kthwd starts no other process, and two programs must not share a data directory.
func Unit(w io.Writer, p Program) error {
	_, err := fmt.Fprintf(w, `# %[1]s.service, made by kthwd explain for scanners to read: kthwd runs %[1]s itself.
# Do not start this unit beside it.
[Unit]
Description=%[1]s, as kthwd --role=controller runs it

[Service]
ExecStart=`, p.Name)
	if err != nil {
		return err
	}
	return p.command(w, "/usr/local/bin/"+p.Name, unitWord)
}

// ExecStart returns the value of ExecStart= for a program's path and arguments, one argument
// a line.
func ExecStart(path string, args []program.Arg) string {
	words := []string{unitWord(path)}
	for _, a := range args {
		words = append(words, unitWord(a.String()))
	}
	return continued(words)
}

// command writes one flag a line, with continued lines.
func (p Program) command(w io.Writer, name string, word func(string) string) error {
	words := []string{name}
	for _, f := range p.Flags {
		words = append(words, word(f.arg()))
	}
	_, err := io.WriteString(w, continued(words)+"\n")
	return err
}

// continued is a command line with a line for each word.
func continued(words []string) string { return strings.Join(words, " \\\n  ") }
