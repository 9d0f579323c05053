package found

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kthwd/appliance/advice"
	"kthwd/appliance/found/unitfile"
)

// searchPath are systemd's directories of units, where systemd itself does not answer; an earlier
// one hides the later ones (systemd.unit(5), "Unit File Load Path").
var searchPath = []string{
	"/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system",
}

// units returns the programs among systemd's services. One that runs a program in a way that
// cannot be read is a problem of that program.
func (m *Machine) units(ctx context.Context, root string) (all []Program, problems map[string]error) {
	problems = map[string]error{}
	for _, u := range m.services(ctx, root) {
		p, err := u.program()
		switch {
		case err != nil:
			problems[p.Name] = err
		case p.Name != "":
			all = append(all, p)
		}
		if u.stale && p.Name != "" {
			m.note("%s has changed, and systemd has not read it again: the plan goes by what systemd has; systemctl daemon-reload reads it", u.path)
		}
	}
	slices.SortFunc(all, func(a, b Program) int { return strings.Compare(a.From, b.From) })
	return all, problems
}

// services are those that systemd has loaded, or can load. The files are read where no systemd
// runs, and below another root, of which the systemd of this machine knows nothing.
func (m *Machine) services(ctx context.Context, root string) (all []unit) {
	if root == "/" {
		all, err := m.loaded(ctx)
		if err == nil {
			return all
		}
		if !errors.Is(err, fs.ErrNotExist) {
			m.note("systemd does not tell its units (%v): their files were read", err)
		}
	}
	for name, path := range unitFiles(root) {
		u := unit{root: root, name: name, path: path}
		switch err := u.load(); {
		case err == nil:
			all = append(all, u)
		case errors.Is(err, fs.ErrPermission):
			m.refuse(err, "run this as root")
		default:
			m.note("%v: left alone", err)
		}
	}
	return all
}

func isTemplate(name string) bool { return strings.HasSuffix(name, "@.service") }

// unitFiles returns the path of each service by its name. Templates are left out.
func unitFiles(root string) map[string]string {
	files := map[string]string{}
	for _, dir := range slices.Backward(searchPath) {
		names, err := fs.Glob(os.DirFS(filepath.Join(root, dir)), "*.service")
		if err != nil {
			continue
		}
		for _, name := range names {
			if !isTemplate(name) {
				files[name] = filepath.Join(root, dir, name)
			}
		}
	}
	maps.DeleteFunc(files, func(_, path string) bool {
		target, err := os.Readlink(path)
		return err == nil && target == "/dev/null" // masked
	})
	return files
}

// unit is a service with its drop-ins.
type unit struct {
	root, name, path string
	starts           []string // ExecStart=
	env              []string
	envFiles         []string
	unset            []string
	stale            bool // systemd has not read its newest file
}

func (u *unit) load() error {
	paths := append([]string{u.path}, u.dropIns()...)
	for _, path := range paths {
		if target, err := os.Readlink(path); err == nil && filepath.IsAbs(target) { // below another root
			if target == os.DevNull { // a drop-in that is masked
				continue
			}
			path = filepath.Join(u.root, target)
		}
		data, err := readFile(path)
		if err != nil {
			return err
		}
		for _, o := range unitfile.Parse(data) {
			if o.Section == "Service" {
				if err := u.set(o); err != nil {
					return fmt.Errorf("%s: %w", path, err)
				}
			}
		}
	}
	return nil
}

// dropIns returns the files of the unit's .d directories, in the order of their names.
func (u *unit) dropIns() (paths []string) {
	files := map[string]string{}
	for _, dir := range slices.Backward(searchPath) {
		for _, of := range []string{"service.d", u.name + ".d"} {
			at := filepath.Join(u.root, dir, of)
			names, err := fs.Glob(os.DirFS(at), "*.conf")
			if err != nil {
				continue
			}
			for _, name := range names {
				files[name] = filepath.Join(at, name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		paths = append(paths, files[name])
	}
	return paths
}

// set applies one line. An empty value takes back all earlier ones.
func (u *unit) set(o unitfile.Option) error {
	list := map[string]*[]string{"ExecStart": &u.starts, "Environment": &u.env, "EnvironmentFile": &u.envFiles, "UnsetEnvironment": &u.unset}[o.Key]
	switch {
	case list == nil:
	case o.Value == "":
		*list = nil
	case o.Key == "ExecStart" || o.Key == "EnvironmentFile":
		*list = append(*list, o.Value)
	default:
		value, err := unitfile.Specifiers(o.Value, u.name, u.host)
		if err != nil {
			return err
		}
		words, err := unitfile.Words(value)
		if err != nil {
			return fmt.Errorf("%s=: %w", o.Key, err)
		}
		*list = append(*list, words...)
	}
	return nil
}

func (u *unit) host() string {
	if data, err := readFile(filepath.Join(u.root, "etc", "hostname")); err == nil {
		return strings.TrimSpace(string(data))
	}
	if u.root != "/" {
		return ""
	}
	name, _ := os.Hostname()
	return name
}

// environment returns the variables of the unit.
func (u *unit) environment() ([]string, error) {
	env := slices.Clone(u.env)
	for _, file := range u.envFiles {
		path, optional := strings.CutPrefix(file, "-")
		path, err := unitfile.Specifiers(strings.Trim(path, `"'`), u.name, u.host)
		if err != nil {
			return nil, err
		}
		for _, path := range u.matching(path) {
			data, err := readFile(filepath.Join(u.root, path))
			switch {
			case err == nil:
				env = append(env, unitfile.Environment(data)...)
			case errors.Is(err, fs.ErrPermission):
				return nil, advice.With(err, "run this as root")
			case !optional:
				return nil, advice.With(err, "the unit does not start without this file: bring it back")
			}
		}
	}
	return slices.DeleteFunc(env, func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return slices.Contains(u.unset, name) || slices.Contains(u.unset, e)
	}), nil
}

// matching returns the files of EnvironmentFile=, which may be a pattern; the path itself, where nothing matches.
func (u *unit) matching(path string) (all []string) {
	names, err := fs.Glob(os.DirFS(u.root), strings.TrimPrefix(filepath.Clean(path), "/"))
	if err != nil || len(names) == 0 {
		return []string{path}
	}
	for _, name := range names {
		all = append(all, "/"+name)
	}
	return all
}

// program returns the program that the unit runs; its name is "" if the unit runs none. An error
// belongs to the program of that name.
func (u *unit) program() (p Program, err error) {
	p = Program{Kind: FromUnits, From: strings.TrimPrefix(u.path, strings.TrimSuffix(u.root, "/"))}
	if p.Name = u.mentions(); p.Name == "" {
		return p, nil
	}
	wrong := func(err error, hint string) (Program, error) {
		return p, advice.With(fmt.Errorf("%s: %w", p.From, err), hint)
	}
	if len(u.starts) != 1 {
		return wrong(fmt.Errorf("has %d lines ExecStart=, and the program needs one", len(u.starts)),
			"give each program a unit of its own; an empty ExecStart= in a drop-in takes back the earlier ones")
	}
	line, err := unitfile.Specifiers(u.starts[0], u.name, u.host)
	if err != nil {
		return wrong(err, "write the value in its place")
	}
	words, err := unitfile.Words(line)
	if err != nil {
		return wrong(fmt.Errorf("ExecStart=: %w", err), "correct the line")
	}
	empty := func() (Program, error) {
		return wrong(errors.New("ExecStart= is empty"), "write the program's command line there")
	}
	if len(words) == 0 {
		return empty()
	}
	if slices.Contains(words, ";") {
		return wrong(errors.New("ExecStart= has two commands, separated by a semicolon"), "give each program a unit of its own")
	}
	env, err := u.environment()
	if err != nil {
		hint, _ := advice.Of(err)
		return wrong(err, hint)
	}
	prefix := words[0][:len(words[0])-len(strings.TrimLeft(words[0], "-@:+!|"))]
	words[0] = strings.TrimPrefix(words[0], prefix)
	if !strings.Contains(prefix, ":") {
		words = unitfile.Expand(words, env)
	}
	if len(words) == 0 {
		return empty()
	}
	exe := words[0]
	if strings.Contains(prefix, "@") && len(words) > 1 { // the second word is argv[0]
		words = words[1:]
	}
	name, args := called(words)
	if name == "" {
		return wrong(fmt.Errorf("runs %s by %s, which is not the program itself, so its flags cannot be read", p.Name, exe),
			"start it and run this again, which reads the process; or write the program's own command line into ExecStart=")
	}
	p.Name, p.Exe, p.Args, p.Env = name, exe, args, env
	return p, nil
}

// mentions returns the program that the unit is about, by its command lines or else its name.
func (u *unit) mentions() string {
	for _, start := range u.starts {
		words, err := unitfile.Words(start)
		if err != nil || len(words) == 0 {
			words = strings.Fields(start)
		}
		if len(words) == 0 {
			continue
		}
		exe := strings.TrimLeft(words[0], "-:+!|")
		if words[0] = strings.TrimPrefix(exe, "@"); words[0] != exe && len(words) > 1 {
			words = words[1:]
		}
		if name, _ := called(words); name != "" {
			return name
		}
	}
	name := strings.TrimSuffix(u.name, ".service")
	if slices.Contains(Names(), name) {
		return name
	}
	for _, start := range u.starts {
		for _, word := range strings.FieldsFunc(start, func(r rune) bool { return strings.ContainsRune(" \t\"';&|", r) }) {
			if base := filepath.Base(word); slices.Contains(Names(), base) && base != "etcd" {
				return base
			}
		}
	}
	return ""
}
