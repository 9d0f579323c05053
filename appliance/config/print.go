package config

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Print writes the configuration as a file that Load reads back, with the origin
// of each value as a comment. It writes the settings of the configuration's roles,
// or of all roles when there is none, and every other setting that the file sets,
// so that nothing the file says is lost. Nothing in it is secret: settings name key
// files, never keys.
func (l *Loader) Print(w io.Writer) error {
	var b bytes.Buffer
	if l.file != "" {
		fmt.Fprintf(&b, "# %s, overridden by the flags of this command\n", l.file)
	}
	if len(l.Config.Role) == 0 {
		fmt.Fprintln(&b, "# the settings of all roles, since none is given; a start reads only those of its roles")
	}
	_, err := w.Write(append(b.Bytes(), Render(l.Values())...))
	return err
}

// Value is a setting as Print writes it.
type Value struct {
	Key    string `json:"key"`
	Text   string `json:"value"`            // YAML, one line
	Origin string `json:"origin"`           // as Loader.Origin returns it
	Remark string `json:"remark,omitempty"` // such as a change of the file since the start
}

// Values returns the settings that Print writes, in its order.
func (l *Loader) Values() (all []Value) {
	for _, s := range l.table {
		if s.name == "config" || !s.of(l.Config.Role) && !l.inFile(s.name) {
			continue
		}
		all = append(all, Value{Key: s.name, Text: s.yaml(), Origin: l.Origin(s.name)})
	}
	return all
}

// Render returns values as lines of a configuration file, each with its origin and its
// remark as a comment.
func Render(all []Value) []byte {
	width := 0
	for _, v := range all {
		if n := len(v.Key) + len(": ") + len(v.Text); n <= 60 {
			width = max(width, n)
		}
	}
	var b bytes.Buffer
	for _, v := range all {
		fmt.Fprintf(&b, "%-*s  # %s", width, v.Key+": "+v.Text, v.Origin)
		if v.Remark != "" {
			b.WriteString("; " + v.Remark)
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// Compared returns the values in force, those of l, with a remark on each that a start
// with the configuration of next would have changed.
func (l *Loader) Compared(next *Loader) []Value {
	now := map[string]string{}
	for _, v := range next.Values() {
		now[v.Key] = v.Text
	}
	all := l.Values()
	changes := l.Changes(next)
	for i, v := range all {
		if !slices.Contains(changes, v.Key) {
			continue
		}
		text, there := now[v.Key]
		if !there {
			text = "nothing"
		}
		all[i].Remark = "changed in the file since the start, to " + text
	}
	return all
}

// yaml returns the value of a setting as one line of YAML.
func (s setting) yaml() string {
	switch v := s.value.(type) {
	case *string:
		return yamlText(*v)
	case *int:
		return fmt.Sprint(*v)
	case *bool:
		return fmt.Sprint(*v)
	case *time.Duration:
		return v.String()
	case *commaList:
		return yamlList(*v)
	case *repeated:
		return yamlList(*v)
	}
	return ""
}

func yamlText(s string) string {
	n := yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if strings.ContainsAny(s, "\n\r\u0085\u2028\u2029") || s == "" {
		n.Style = yaml.DoubleQuotedStyle // keeps it on one line
	}
	return yamlLineOf(&n)
}

func yamlList(all []string) string {
	n := yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, s := range all {
		e := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
		if strings.ContainsAny(s, "\n\r\u0085\u2028\u2029") {
			e.Style = yaml.DoubleQuotedStyle
		}
		n.Content = append(n.Content, e)
	}
	return yamlLineOf(&n)
}

func yamlLineOf(n *yaml.Node) string {
	text, err := yaml.Marshal(n)
	if err != nil {
		return fmt.Sprintf("# %v", err)
	}
	return strings.TrimSuffix(string(text), "\n")
}
