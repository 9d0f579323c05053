// Package found reads what this machine runs as a control plane that is not kthwd's: running
// processes, systemd units with their drop-ins, kubeadm's static pods, and what nginx does for
// the API server.
//
//	m := found.Read(ctx, found.Options{})
//
// systemd tells its units over D-Bus; their files are read where no systemd answers. Read
// reads only, starts nothing, and judges no flag. A description that it cannot turn into
// one command line, such as a unit with a wrapper script, becomes a problem of its program, with
// the way out. It links neither Kubernetes nor etcd.
package found

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kthwd/appliance/advice"
	"kthwd/appliance/paths"
	"kthwd/appliance/program"
)

// Names are the programs that Read looks for, in the order of their start.
func Names() []string {
	return []string{program.Etcd, program.APIServer, program.ControllerManager, program.Scheduler}
}

// The sources of a command line.
const (
	FromUnits     = "units"     // systemd's units
	FromManifests = "manifests" // kubeadm's static pods
	FromRunning   = "running"   // processes
)

// Sources are the values of Options.From, in the order in which they are read.
func Sources() []string { return []string{FromRunning, FromManifests, FromUnits} }

// Options is the input of Read.
type Options struct {
	Root string   // the descriptions are read below it; "" means /
	From []string // sources that are read; none means all
}

// Machine is what Read finds.
type Machine struct {
	Programs []Program // one of each kind at most, in the order of Names
	Running  []Process // the processes among the programs
	Health   *Health   // nginx in front of the API server's health
	Streams  []Stream  // nginx as a load balancer
	Notes    []string  // read and left alone
	Missing  []string  // programs of which there is no trace
	Problems []error   // each with advice; the plan is none then

	included  int   // files that nginx includes
	leftAlone []int // processes of strangers
}

// Program is the command line of one program.
type Program struct {
	Name    string
	Exe     string            // the file that is run
	Args    []string          // the words after it
	Env     []string          // NAME=VALUE, of a description; in its order
	From    string            // the file, or "process N"
	Kind    string            // one of the sources
	Version string            // of the image, such as v1.36.3; "" if nothing says it
	Mounts  map[string]string // paths on the machine by their path in the container; nil outside one

	closed   bool   // the environment of the process cannot be read
	stranger string // whose the process may be, see strangerOf
	pid      int
}

// Process is a running program.
type Process struct {
	Name string
	PID  int
}

// Path returns the place on the machine of a path that the program is given.
func (p Program) Path(path string) string {
	best := ""
	for inside := range p.Mounts {
		if (path == inside || strings.HasPrefix(path, strings.TrimSuffix(inside, "/")+"/")) && len(inside) > len(best) {
			best = inside
		}
	}
	if best == "" {
		return path
	}
	return filepath.Join(p.Mounts[best], strings.TrimPrefix(path, best))
}

// Read reads the machine. A running program is believed before a description of it, since that
// is the cluster of today; a note says where the two differ. A process of an ordinary user or in a
// container, which anybody may have started under this name, is believed where a description has
// the same words, and where Options.From names processes.
func Read(ctx context.Context, o Options) *Machine {
	m := &Machine{}
	if o.Root == "" {
		o.Root = "/"
	}
	wants := func(source string) bool { return len(o.From) == 0 || slices.Contains(o.From, source) }
	running := m.processes(o.Root)
	var written []Program
	var wrapped map[string]error
	if wants(FromManifests) {
		written = append(written, m.manifests(o.Root)...)
	}
	if wants(FromUnits) {
		units, problems := m.units(ctx, o.Root)
		written, wrapped = append(written, units...), problems
	}
	for _, name := range Names() {
		described := only(written, name)
		known := m.known(only(running, name), described, slices.Contains(o.From, FromRunning))
		if !wants(FromRunning) {
			known = nil
		}
		m.choose(name, known, described, wrapped[name])
	}
	m.Running = slices.DeleteFunc(m.Running, func(p Process) bool { return slices.Contains(m.leftAlone, p.PID) })
	m.nginx(o.Root)
	return m
}

func only(all []Program, name string) []Program {
	return slices.DeleteFunc(slices.Clone(all), func(p Program) bool { return p.Name != name })
}

// known leaves out the processes that may be anybody's, unless a description has the same words, or nothing
// else tells the words: choose refuses that. Else anybody's words would become kthwd's settings.
func (m *Machine) known(running, written []Program, believed bool) (all []Program) {
	own := slices.ContainsFunc(running, func(p Program) bool { return p.stranger == "" })
	for _, p := range running {
		switch {
		case believed:
			p.stranger = ""
		case p.stranger == "", len(written) == 0 && !own:
		case len(written) == 1 && slices.Equal(p.Args, written[0].Args) && !own && len(all) == 0:
			p.Exe = written[0].Exe
		default:
			m.leftAlone = append(m.leftAlone, p.pid)
			m.note("%s: %s, %s, was left alone; --from=running believes it", p.Name, p.From, p.stranger)
			continue
		}
		all = append(all, p)
	}
	return all
}

// choose takes one of the command lines of a program.
func (m *Machine) choose(name string, running, written []Program, wrapped error) {
	places := func(all []Program) string {
		var from []string
		for _, p := range all {
			from = append(from, p.From)
		}
		return strings.Join(from, " and ")
	}
	switch {
	case len(running) > 1:
		m.refuse(fmt.Errorf("%s runs twice: %s", name, places(running)), "stop the one that this cluster does not use")
	case len(written) > 1:
		m.refuse(fmt.Errorf("%s is described twice: %s", name, places(written)), "name one kind with --from, or remove the description that this cluster does not use")
	case len(running) == 1 && running[0].stranger != "" && len(written) == 0:
		p := running[0]
		m.refuse(fmt.Errorf("%s: %s is %s, so anybody may have started it under this name", name, p.From, p.stranger),
			"if it is the cluster's, say so: --from=running, and --from=units or --from=manifests for programs that do not run")
	case len(running) == 1:
		p := running[0]
		if len(written) == 1 {
			w := written[0]
			p.Mounts, p.Version, p.Env = w.Mounts, w.Version, w.Env
			if !slices.Equal(p.Args, w.Args) {
				m.note("%s: %s was started with other words than %s has; the plan goes by the process", name, p.From, w.From)
			}
		} else if p.closed {
			m.refuse(fmt.Errorf("%s, %s: its environment cannot be read", name, p.From), "run this as root")
		}
		m.Programs = append(m.Programs, p)
	case wrapped != nil:
		m.Problems = append(m.Problems, wrapped)
	case len(written) == 1:
		m.Programs = append(m.Programs, written[0])
	default:
		m.Missing = append(m.Missing, name)
	}
}

func (m *Machine) refuse(err error, hint string) {
	m.Problems = append(m.Problems, advice.With(err, hint))
}

func (m *Machine) note(format string, args ...any) {
	m.Notes = append(m.Notes, fmt.Sprintf(format, args...))
}

// maxDescription is the size of the largest file that is read.
const maxDescription = 1 << 20

// readFile reads a description. It waits for nobody, as the opening of a FIFO would.
func readFile(path string) ([]byte, error) {
	if path == os.DevNull { // no lines
		return nil, nil
	}
	f, info, err := paths.OpenRegular(path, true)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size() > maxDescription {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxDescription)
	}
	return io.ReadAll(io.LimitReader(f, maxDescription))
}
