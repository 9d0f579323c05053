package config

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Annotated writes a configuration file for a role, for its owner to edit. It
// explains each key. A key in set has the given value; every other one is commented
// out and shows its default. The keys role and config belong on the command line.
func Annotated(w io.Writer, role string, set map[string]string) error {
	l := NewLoader()
	var b bytes.Buffer
	fmt.Fprintf(&b, "# kthwd --role=%s. Each key is also a flag, which overrides this file.\n", role)
	b.WriteString("# A line that is commented out shows the default. kthwd config --role=" + role + " --config=FILE\n# shows the resulting configuration and what is wrong with it.\n")
	group := ""
	for _, s := range l.table {
		if !s.of([]string{role}) || s.name == "role" || s.name == "config" {
			continue
		}
		if s.group != group {
			group = s.group
			fmt.Fprintf(&b, "\n### %s\n", group)
		}
		b.WriteByte('\n')
		for _, text := range wrap(s.help, 90) {
			b.WriteString("# " + text + "\n")
		}
		if value, is := set[s.name]; is {
			fmt.Fprintf(&b, "%s: %s\n", s.name, value)
		} else {
			fmt.Fprintf(&b, "#%s: %s\n", s.name, s.yaml())
		}
	}
	for name := range set {
		if !slices.Contains(l.Names(role), name) {
			return fmt.Errorf("no setting %q of role %s", name, role)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// A Section is a group of flags under its title.
type Section struct {
	Title string
	Flags []Flag
}

// Flag is one flag for a page of the manual.
type Flag struct{ Name, Arg, Help, Default string }

// Sections returns all flags in the groups of Usage.
func (l *Loader) Sections() (all []Section) {
	for _, group := range groups {
		s := Section{Title: group}
		for _, x := range l.table {
			if x.group != group {
				continue
			}
			if x.role != RoleAll && len(s.Flags) == 0 {
				s.Title += " (--role=" + x.role + ")"
			}
			s.Flags = append(s.Flags, Flag{x.name, x.arg, x.help, strings.Trim(l.fs.Lookup(x.name).DefValue, "[]")})
		}
		all = append(all, s)
	}
	return all
}
