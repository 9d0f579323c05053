package found

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"kthwd/appliance/names"
)

// processes reads the programs that run, from /proc: their exact words, after systemd's or a
// shell's expansion.
func (m *Machine) processes(root string) (all []Program) {
	dir := filepath.Join(root, "proc")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // the file system of a machine that does not run
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name(), "cmdline"))
		if err != nil || len(data) == 0 { // it has ended, or is one of the kernel's
			continue
		}
		words := strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
		name, args := called(words)
		if name == "" || !serves(args) {
			continue
		}
		status, err := os.ReadFile(filepath.Join(dir, e.Name(), "status"))
		if err != nil && root == "/" { // it has ended
			continue
		}
		p := Program{Name: name, Exe: words[0], Args: args, Kind: FromRunning, From: fmt.Sprintf("process %d", pid), stranger: strangerOf(status), pid: pid}
		if environ, err := os.ReadFile(filepath.Join(dir, e.Name(), "environ")); err == nil {
			p.Env = strings.Split(strings.TrimSuffix(string(environ), "\x00"), "\x00")
		} else {
			p.closed = errors.Is(err, fs.ErrPermission)
		}
		if cwd, err := os.Readlink(filepath.Join(dir, e.Name(), "cwd")); err == nil {
			p.Args = absolute(p.Args, cwd)
		}
		m.Running = append(m.Running, Process{name, pid})
		all = append(all, p)
	}
	return all
}

// strangerOf names the user or container that may have started a process in place of an administrator: every
// user and every container names its processes as it likes. "" means one of root's, or of the user of this process. The owner of
// a directory in /proc is no evidence: it is root for a process that has made itself undumpable.
func strangerOf(status []byte) string {
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		ids := strings.Fields(value)
		switch {
		case key == "NSpid" && len(ids) > 1:
			return "in a container"
		case key == "Uid":
			for _, id := range ids { // the first is the user that has started a set-user-ID program
				if id == "0" || id == strconv.Itoa(os.Geteuid()) {
					continue
				}
				if u, err := user.LookupId(id); err == nil {
					id = u.Username
				}
				return "of the user " + id
			}
		}
	}
	return ""
}

// called returns the program that a command line means, and its arguments. The binary of kthwd
// is also upstream's programs.
func called(words []string) (name string, args []string) {
	c := names.Of(words)
	if !slices.Contains(Names(), c.Name) {
		return "", nil
	}
	return c.Name, c.Args[1:]
}

// serves tells a program that serves from one that answers a question and ends, and from
// other uses of etcd's binary.
func serves(args []string) bool {
	for _, a := range args {
		if a == "--version" || a == "--help" || a == "-h" || a == "gateway" || a == "grpc-proxy" {
			return false
		}
	}
	return true
}

// absolute makes relative paths of files that exist start from the working directory.
func absolute(args []string, cwd string) []string {
	args = slices.Clone(args)
	for i, a := range args {
		key, value, found := strings.Cut(a, "=")
		if !strings.HasPrefix(a, "-") {
			key, value, found = "", a, true
		}
		if !found || !strings.Contains(value, "/") || filepath.IsAbs(value) || strings.Contains(value, ":") {
			continue
		}
		path := filepath.Join(cwd, value)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if args[i] = path; key != "" {
			args[i] = key + "=" + path
		}
	}
	return args
}
