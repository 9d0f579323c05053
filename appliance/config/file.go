package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"kthwd/appliance/text"
)

// maxFile is the size of the largest configuration file that Load reads.
const maxFile = 1 << 20

// Load reads the configuration file, if there is one, into every setting that
// the command line did not set. The error joins everything that is wrong with the
// file, each as a *Problem with its line. Call it after the flags are parsed.
func (l *Loader) Load() error {
	text, err := l.readFile()
	if err != nil || text == nil {
		return err
	}
	return l.parseFile(l.file, text)
}

// File returns the configuration file that Load has read, or "" when there is none.
func (l *Loader) File() string { return l.file }

// readFile returns nil, and no error, when there is no file to read.
func (l *Loader) readFile() ([]byte, error) {
	path, asked := l.file, l.fs.Lookup("config").Changed
	if !asked {
		path = DefaultFile
	}
	if path == "" {
		return nil, nil
	}
	text, err := readAtMost(path, maxFile)
	switch {
	case err == nil:
		l.file = path
		return text, nil
	case errors.Is(err, fs.ErrNotExist) && !asked:
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, &Problem{Key: "config", Origin: OriginFlag, Text: path + ": no such file", Hint: "kthwd needs no file; omit --config to run with defaults and flags"}
	case errors.Is(err, fs.ErrPermission) && !asked:
		return nil, &Problem{Text: "read " + path + ": permission denied", Hint: "run kthwd as a user that can read it, or skip the file with --config="}
	default:
		var path *fs.PathError
		if errors.As(err, &path) && path.Op == "open" {
			path.Op = "read"
		}
		return nil, &Problem{Text: err.Error()}
	}
}

func readAtMost(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s: larger than %d bytes", path, most)
	}
	if text == nil {
		text = []byte{}
	}
	return text, err
}

// entry is one "key: value" of the file.
type entry struct {
	key    string
	values []string
	list   bool
	line   int
}

// parseFile applies the settings of the file. Values pass through the flags, so that
// one mechanism handles types, errors and origins. They pass through the flags of a
// scratch Loader first, which finds a wrong value even if a flag overrides it.
func (l *Loader) parseFile(path string, text []byte) error {
	entries, problems := parseYAML(path, text)
	scratch := NewLoader()
	for _, e := range entries {
		origin := fmt.Sprintf("%s:%d", path, e.line)
		if p := scratch.setFromFile(e, origin); p != nil {
			problems = append(problems, p)
			continue
		}
		if f := l.fs.Lookup(e.key); !f.Changed {
			setValues(f, e)
			l.anchor(e.key, filepath.Dir(path))
			l.origins[e.key] = origin
		}
	}
	return joinProblems(problems)
}

// anchor makes a relative path in the file start from the file's own directory, so
// that a directory that contains its file may be anywhere.
func (l *Loader) anchor(key, dir string) {
	i := slices.IndexFunc(l.table, func(s setting) bool { return s.name == key })
	isPath := l.table[i].arg == "FILE" || l.table[i].arg == "DIR" || key == "upgrade-socket" || key == "status-socket"
	path, isText := l.table[i].value.(*string)
	if !isPath || !isText || *path == "" || filepath.IsAbs(*path) || strings.HasPrefix(*path, "@") {
		return
	}
	*path = filepath.Join(dir, *path)
}

func (l *Loader) setFromFile(e entry, origin string) *Problem {
	f := l.fs.Lookup(e.key)
	switch {
	case f == nil:
		return &Problem{Origin: origin, Text: fmt.Sprintf("unknown key %q", e.key), Hint: didYouMean("", l.nearest(e.key))}
	case e.key == "config":
		return &Problem{Origin: origin, Text: `"config" names this file and cannot be set in it`}
	case e.list && !isList(f):
		return &Problem{Key: e.key, Origin: origin, Text: "takes one value, not a list"}
	}
	if err := setValues(f, e); err != nil {
		return &Problem{Key: e.key, Origin: origin, Text: wrongType(f, e.values[0])}
	}
	return nil
}

func isList(f *pflag.Flag) bool {
	_, ok := f.Value.(pflag.SliceValue)
	return ok
}

// setValues sets a flag to its values from the file without marking it as set on
// the command line. It parses a single value as the command line would, and takes
// the elements of a list verbatim.
func setValues(f *pflag.Flag, e entry) error {
	if e.list {
		return f.Value.(pflag.SliceValue).Replace(append([]string{}, e.values...))
	}
	return f.Value.Set(e.values[0])
}

var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\s+)?(?:line (\d+): )?`)

// parseYAML reads the mapping in the file, in order. It returns the entries that it
// could read and the problems with the others.
func parseYAML(path string, text []byte) ([]entry, []*Problem) {
	var doc, more yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil // empty, or comments only
	case err != nil:
		return nil, []*Problem{syntaxProblem(path, err, text)}
	}
	switch err := d.Decode(&more); {
	case err == nil:
		return nil, []*Problem{{Origin: fmt.Sprintf("%s:%d", path, more.Line), Text: "a second document begins here, want one"}}
	case !errors.Is(err, io.EOF):
		return nil, []*Problem{syntaxProblem(path, err, text)}
	}
	return parseMapping(path, doc.Content[0])
}

// bareAddress matches an address that YAML takes for its own syntax: :6443 in brackets, and
// [::]:6443 anywhere.
var bareAddress = text.Pattern(`(?m)^[^#"'\n]*?(?:[\[,]\s*(:[0-9]+)|[\[,:-]\s*(\[[0-9a-fA-F:.%]*\]:[0-9]+))`)

func syntaxProblem(path string, err error, file []byte) *Problem {
	message := err.Error()
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		message = strings.TrimPrefix(message, m[0])
		if m[1] != "" {
			path += ":" + m[1]
		}
	}
	p := &Problem{Origin: path, Text: "not YAML: " + text.Line(message)}
	if m := bareAddress().FindSubmatch(file); m != nil {
		p.Hint = fmt.Sprintf("put the address in quotes: \"%s%s\"", m[1], m[2])
	}
	return p
}

// aKey matches every key, and a misspelled one.
var aKey = regexp.MustCompile(`^[-_.a-zA-Z0-9]{1,64}$`)

func parseMapping(path string, root *yaml.Node) (entries []entry, problems []*Problem) {
	if root.Tag == "!!null" {
		return nil, nil
	}
	at := func(n *yaml.Node) string { return fmt.Sprintf("%s:%d", path, n.Line) }
	if root.Kind != yaml.MappingNode {
		return nil, []*Problem{{Origin: at(root), Text: `want lines of the form "key: value", got ` + kindName(root)}}
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		k, v := root.Content[i], resolve(root.Content[i+1])
		if k.Kind != yaml.ScalarNode || !aKey.MatchString(k.Value) {
			problems = append(problems, &Problem{Origin: at(k), Text: "want a key, got " + kindName(k)})
			continue
		}
		if line, ok := seen[k.Value]; ok {
			problems = append(problems, &Problem{Key: k.Value, Origin: at(k), Text: fmt.Sprintf("is already set in line %d", line)})
			continue
		}
		seen[k.Value] = k.Line
		e := entry{key: k.Value, line: k.Line}
		if bad, text := e.read(v); text != "" {
			problems = append(problems, &Problem{Key: k.Value, Origin: at(bad), Text: text})
			continue
		}
		entries = append(entries, e)
	}
	return entries, problems
}

// read stores the value of an entry. It returns the node that it cannot use, and why.
func (e *entry) read(v *yaml.Node) (bad *yaml.Node, problem string) {
	switch {
	case v.Tag == "!!null":
		return v, `has no value; write "" for an empty value, or remove the line`
	case v.Kind == yaml.ScalarNode:
		e.values = []string{v.Value}
	case v.Kind == yaml.MappingNode && e.key == "files":
		e.list = true
		for i := 0; i+1 < len(v.Content); i += 2 {
			name, path := v.Content[i], resolve(v.Content[i+1])
			if name.Kind != yaml.ScalarNode || path.Kind != yaml.ScalarNode || path.Tag == "!!null" {
				return name, "needs lines of the form \"NAME: FILE\""
			}
			e.values = append(e.values, name.Value+"="+path.Value)
		}
	case v.Kind == yaml.SequenceNode:
		e.list = true
		for i, n := range v.Content {
			if n = resolve(n); n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
				return n, fmt.Sprintf("needs one value as element %d, not %s", i+1, kindName(n))
			}
			e.values = append(e.values, n.Value)
		}
	default:
		return v, "needs a value or a list, not " + kindName(v)
	}
	return nil, ""
}

func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

func kindName(n *yaml.Node) string {
	switch {
	case n.Tag == "!!null":
		return "nothing"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.ScalarNode:
		return fmt.Sprintf("%.40q", n.Value)
	default:
		return "an alias"
	}
}
