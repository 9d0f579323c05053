package config

import (
	"bytes"
	"fmt"
	"io"
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
	lines, width := l.lines()
	for _, line := range lines {
		fmt.Fprintf(&b, "%-*s  # %s\n", width, line.text, line.origin)
	}
	_, err := w.Write(b.Bytes())
	return err
}

type line struct{ text, origin string }

// lines returns the "key: value" lines and the width of the longest usual one.
func (l *Loader) lines() (lines []line, width int) {
	for _, s := range l.table {
		if s.name == "config" || !s.of(l.Config.Role) && !l.inFile(s.name) {
			continue
		}
		text := s.name + ": " + s.yaml()
		lines = append(lines, line{text, l.Origin(s.name)})
		if len(text) <= 60 {
			width = max(width, len(text))
		}
	}
	return lines, width
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
