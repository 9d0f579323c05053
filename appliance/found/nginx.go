package found

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Health is the server of nginx that answers for the API server's health in plain HTTP.
type Health struct {
	Listen string // ADDRESS:PORT, as --health-address takes it
	Host   string // its server_name; "" for any
	From   string
}

// Stream is a load balancer of nginx for the API servers.
type Stream struct {
	Listen   []string // ADDRESS:PORT
	Backends []string // HOST:PORT
	From     string
}

// directive is one of nginx's: words, and directives in braces.
type directive struct {
	words []string
	block []directive
}

func (d directive) name() string { return d.words[0] }

func (d directive) arg() string {
	if len(d.words) < 2 {
		return ""
	}
	return d.words[1]
}

// find calls visit for each directive of the name in the block, not below other blocks.
func (d directive) find(name string, visit func(directive)) {
	for _, b := range d.block {
		if b.name() == name {
			visit(b)
		}
	}
}

// errNginx is a file that nginx itself would refuse.
var errNginx = errors.New("not a configuration of nginx")

// deepest is how many blocks and includes may stand within each other.
const deepest = 32

// mostIncluded is how many files are included: one that includes itself has no end.
const mostIncluded = 1000

// parseNginx reads a configuration of nginx.
func parseNginx(data []byte) ([]directive, error) {
	tokens, err := nginxTokens(string(data))
	if err != nil {
		return nil, err
	}
	all, rest, err := nginxBlock(tokens, 0)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%w: a brace too many", errNginx)
	}
	return all, err
}

// nginxToken is a word, or a mark: one of { } ;
type nginxToken struct {
	text string
	mark bool
}

func nginxTokens(s string) (tokens []nginxToken, err error) {
	var word strings.Builder
	in := false
	end := func() {
		if in {
			tokens = append(tokens, nginxToken{text: word.String()})
		}
		word.Reset()
		in = false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			end()
		case c == '#' && !in:
			for i < len(s) && s[i] != '\n' {
				i++
			}
		case (c == '"' || c == '\'') && !in:
			closed := false
			for i++; i < len(s); i++ {
				if s[i] == '\\' && i+1 < len(s) {
					i++
				} else if s[i] == c {
					closed = true
					break
				}
				word.WriteByte(s[i])
			}
			if !closed {
				return nil, fmt.Errorf("%w: a quotation mark is not closed", errNginx)
			}
			in = true
			end()
		case c == '\\' && i+1 < len(s):
			word.WriteByte(s[i+1])
			in = true
			i++
		case c == '$' && i+1 < len(s) && s[i+1] == '{':
			word.WriteString("${")
			in = true
			i++
			for i++; i < len(s) && s[i] != '}'; i++ {
				word.WriteByte(s[i])
			}
			word.WriteByte('}')
		case c == '{' || c == '}' || c == ';':
			end()
			tokens = append(tokens, nginxToken{text: string(c), mark: true})
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if in {
		return nil, fmt.Errorf("%w: the last line has no semicolon", errNginx)
	}
	return tokens, nil
}

// nginxBlock reads directives up to a closing brace or the end.
func nginxBlock(tokens []nginxToken, depth int) (all []directive, rest []nginxToken, err error) {
	if depth > deepest {
		return nil, nil, fmt.Errorf("%w: blocks too deep", errNginx)
	}
	d := directive{}
	for len(tokens) > 0 {
		t := tokens[0]
		tokens = tokens[1:]
		switch {
		case !t.mark:
			d.words = append(d.words, t.text)
			continue
		case t.text == "}" && len(d.words) == 0 && depth > 0:
			return all, tokens, nil
		case t.text == "}" || len(d.words) == 0:
			return nil, nil, fmt.Errorf("%w: %q at the wrong place", errNginx, t.text)
		case t.text == "{":
			if d.block, tokens, err = nginxBlock(tokens, depth+1); err != nil {
				return nil, nil, err
			}
		}
		all = append(all, d)
		d = directive{}
	}
	if len(d.words) > 0 || depth > 0 {
		return nil, nil, fmt.Errorf("%w: it ends within a block", errNginx)
	}
	return all, nil, nil
}

// nginx reads nginx's configuration and keeps the two shapes of the guide: a server that passes
// /healthz on, and a stream to API servers.
func (m *Machine) nginx(root string) {
	top, err := m.nginxFile(root, "/etc/nginx/nginx.conf", 0)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		m.note("nginx: %v: left alone", err)
		return
	}
	var walk func(from string, all []directive)
	walk = func(from string, all []directive) {
		for _, d := range all {
			switch d.name() {
			case "include ": // see nginxFile
				walk(d.arg(), d.block)
			case "http":
				walk(from, d.block)
			case "server":
				m.health(from, d)
			case "stream":
				m.stream(from, d)
			}
		}
	}
	walk("/etc/nginx/nginx.conf", top)
}

// nginxFile reads a file, and puts the content of those that it includes into blocks of their
// own.
func (m *Machine) nginxFile(root, path string, depth int) ([]directive, error) {
	data, err := readFile(filepath.Join(root, path))
	if err != nil {
		return nil, err
	}
	all, err := parseNginx(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m.include(root, filepath.Dir(path), all, depth), nil
}

func (m *Machine) include(root, dir string, all []directive, depth int) (out []directive) {
	for _, d := range all {
		if d.name() != "include" || depth > deepest || m.included > mostIncluded {
			d.block = m.include(root, dir, d.block, depth)
			out = append(out, d)
			continue
		}
		pattern := d.arg()
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join("/etc/nginx", pattern)
		}
		names, err := fs.Glob(os.DirFS(root), strings.TrimPrefix(pattern, "/"))
		if err != nil {
			continue
		}
		for _, name := range names {
			if target, err := os.Readlink(filepath.Join(root, name)); err == nil && filepath.IsAbs(target) {
				name = strings.TrimPrefix(target, "/") // sites-enabled has links
			}
			m.included++
			block, err := m.nginxFile(root, "/"+name, depth+1)
			if err != nil {
				if base := filepath.Base(name); base != "mime.types" {
					m.note("nginx: %v: left alone", err)
				}
				continue
			}
			out = append(out, directive{words: []string{"include ", "/" + name}, block: block})
		}
	}
	return out
}

// withIncluded puts the content of included files among the other directives.
func withIncluded(all []directive) (out []directive) {
	for _, d := range all {
		if d.name() == "include " {
			out = append(out, withIncluded(d.block)...)
		} else {
			out = append(out, d)
		}
	}
	return out
}

// health keeps a server that passes a path on to the API server's health.
func (m *Machine) health(from string, server directive) {
	h := &Health{From: from, Listen: ":80"}
	passes := false
	server.find("location", func(l directive) {
		l.find("proxy_pass", func(p directive) {
			passes = passes || strings.HasPrefix(p.arg(), "https://") && strings.HasSuffix(p.arg(), "z") && strings.Contains(l.arg(), "/healthz")
		})
	})
	if !passes {
		return
	}
	server.find("listen", func(l directive) { h.Listen = listenAddress(l.arg()) })
	server.find("server_name", func(n directive) {
		if h.Host = n.arg(); h.Host == "_" {
			h.Host = ""
		}
	})
	if m.Health != nil {
		m.note("nginx: %s answers for the health, too: left alone", from)
		return
	}
	m.Health = h
}

// stream keeps a stream whose backends are named.
func (m *Machine) stream(from string, d directive) {
	d.block = withIncluded(d.block)
	upstreams := map[string][]string{}
	d.find("upstream", func(u directive) {
		u.find("server", func(s directive) { upstreams[u.arg()] = append(upstreams[u.arg()], s.arg()) })
	})
	d.find("server", func(s directive) {
		st := Stream{From: from}
		s.find("listen", func(l directive) { st.Listen = append(st.Listen, listenAddress(l.arg())) })
		s.find("proxy_pass", func(p directive) {
			if st.Backends = upstreams[p.arg()]; st.Backends == nil && p.arg() != "" {
				st.Backends = []string{p.arg()}
			}
		})
		api := slices.ContainsFunc(st.Backends, func(b string) bool { return strings.HasSuffix(b, ":6443") })
		if len(st.Listen) > 0 && api {
			m.Streams = append(m.Streams, st)
		}
	})
}

// listenAddress turns nginx's address into ADDRESS:PORT.
func listenAddress(s string) string {
	if s != "" && !strings.ContainsAny(s, ":.") {
		if strings.Trim(s, "0123456789") == "" {
			return ":" + s
		}
		return net.JoinHostPort(s, "80")
	}
	s = strings.TrimPrefix(s, "*")
	if _, _, err := net.SplitHostPort(s); err != nil {
		return net.JoinHostPort(strings.Trim(s, "[]"), "80")
	}
	return s
}
