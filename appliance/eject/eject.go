// Package eject writes what a controller, or a load balancer, needs to go on without kthwd:
// systemd units of the four programs with the files that their flags name, and nginx's files
// for the health bridge and for the balancer.
//
//	files, err := eject.Make(in)
//	err = eject.Write(dir, files)
//
// Make reads the data directory and changes nothing. Its errors are all reasons at once why
// the data cannot be handed over. The units point at the data directory, so no key is copied.
// README.txt, one of the files, has the commands in their order, and names all that kthwd does
// and no flag can. Write makes the directory, which must be empty or new.
package eject

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/explain"
	"kthwd/appliance/observe"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// The values of Input.Names.
const (
	Upstream = "upstream" // upstream's binaries, in /usr/local/bin as in the guide
	Kthwd    = "kthwd"    // links to kthwd, in /usr/lib/kthwd/bin as in the packages
)

// BinDir returns the directory of the programs for one of the values of Input.Names.
func BinDir(names string) string {
	if names == Kthwd {
		return "/usr/lib/kthwd/bin"
	}
	return "/usr/local/bin"
}

// ConfigDir is where the guide has files that are no secrets.
const ConfigDir = "/etc/kubernetes/config"

// environmentFile is the name of the file with variables, in the directory of settings.
const environmentFile = "environment"

// Input is what is handed over.
type Input struct {
	Config config.Config            // resolved and valid
	Args   map[string][]program.Arg // the command lines inside kthwd, by program; nil for a load balancer alone

	// Files are what a start writes into the run directory for the programs, by path. They
	// hold no secrets.
	Files     map[string][]byte
	Verbosity map[string]int // --v of the user's, by program

	Names     string   // Upstream or Kthwd
	BinDir    string   // directory of the programs; "" means BinDir(Names)
	ConfigDir string   // where the files of Config will be; "" means the constant
	Variables []string // NAME=VALUE, for all four programs
	Out       string   // directory that the files are for, as README.txt calls it

	Kthwd, Kubernetes, Etcd string // versions
}

// File is a file to write.
type File struct {
	Path string // below the directory
	Mode fs.FileMode
	Data []byte
}

// Make makes the files. Everything that it finds in the way is in its error.
func Make(in Input) ([]File, error) {
	if in.BinDir == "" {
		in.BinDir = BinDir(in.Names)
	}
	if in.ConfigDir == "" {
		in.ConfigDir = ConfigDir
	}
	var files []File
	var lost []loss
	var errs []error
	if in.Args != nil {
		made, without, err := in.controller()
		files, lost, errs = append(files, made...), append(lost, without...), append(errs, err)
	}
	if in.Config.Is(config.RoleLB) {
		stream, err := streamFile(in.Config.LB)
		files, lost, errs = append(files, stream), append(lost, lbLost...), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return append(files, File{"README.txt", 0o644, in.readme(files, lost)}), nil
}

// controller makes the files of a controller, and what is lost with them.
func (in Input) controller() (files []File, lost []loss, err error) {
	l := in.Config.Controller.Layout()
	if err := obstacles(l); err != nil {
		return nil, nil, err
	}
	args, lost, err := in.alone()
	if err != nil {
		return nil, nil, err
	}
	args, files = in.settings(args)
	if err := in.present(args); err != nil {
		return nil, nil, err
	}
	owner, err := ownerOf(l.Dir)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range explain.Names() {
		files = append(files, in.unit(name, args, owner))
	}
	if c := in.Config.Controller; c.HealthAddress != "" {
		bridge, err := healthFile(c, program.Value(args[program.APIServer], "tls-cert-file"))
		if err != nil {
			return nil, nil, err
		}
		files = append(files, bridge)
	}
	return files, append(lost, controllerLost...), nil
}

// obstacles are the states of a data directory that only kthwd can end.
func obstacles(l pki.Layout) error {
	there := func(path string) bool { _, err := os.Lstat(path); return err == nil }
	_, err := os.ReadDir(l.Dir)
	switch stage := pki.StageOf(l); {
	case errors.Is(err, fs.ErrPermission):
		return advice.With(fmt.Errorf("%s: %w", l.Dir, fs.ErrPermission), "run this as root or as the owner of the directory")
	case there(l.Restore()):
		return advice.With(fmt.Errorf("%s: a restore has not ended", l.Dir), "the next start of kthwd ends it; run eject after that")
	case there(l.JoinRecord()):
		return advice.With(fmt.Errorf("%s: this controller has not arrived in its cluster yet", l.Dir), "start kthwd, and run eject when kthwd status says ready")
	case !there(l.CA()) || !there(filepath.Join(l.Etcd(), "member")):
		return advice.With(fmt.Errorf("%s: there is no cluster yet: no %s, or no data of etcd in %s", l.Dir, l.CA(), l.Etcd()),
			"name the directory of a controller with --data-dir or --config; a new one needs one start of kthwd")
	case stage == pki.StageTrust || stage == pki.StageUse:
		return advice.With(fmt.Errorf("%s: the move of the cluster to a CA of etcd's own has not ended: etcd %s", l.Dir, stage),
			"kthwd pki split-etcd-ca continues it; run eject after that")
	}
	return nil
}

// settings moves the files of the run directory, which only a start of kthwd writes, to the
// directory of settings.
func (in Input) settings(args map[string][]program.Arg) (map[string][]program.Arg, []File) {
	var files []File
	for _, path := range slices.Sorted(maps.Keys(in.Files)) {
		used := false
		for _, name := range explain.Names() {
			for i, a := range args[name] {
				if a.Value == path {
					args[name][i].Value, used = filepath.Join(in.ConfigDir, filepath.Base(path)), true
				}
			}
		}
		if used {
			files = append(files, File{filepath.Join("config", filepath.Base(path)), 0o644, in.Files[path]})
		}
	}
	if len(in.Variables) > 0 { // a proxy's URL may hold a password
		files = append(files, File{filepath.Join("config", environmentFile), 0o600, environment(in.Variables)})
	}
	return args, files
}

// present requires all files that the command lines name, but for those that Make makes.
func (in Input) present(args map[string][]program.Arg) error {
	var missing []string
	for _, f := range observe.FilesOf(args) {
		for _, path := range []string{f.Path, f.Key} {
			if path == "" || filepath.Dir(path) == in.ConfigDir {
				continue
			}
			if _, err := os.Stat(path); err != nil && !slices.Contains(missing, path) {
				missing = append(missing, path)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return advice.With(fmt.Errorf("the programs need files that are not there: %s", strings.Join(missing, ", ")), "kthwd pki init makes those of the data directory, and so does a start of kthwd")
}

// account is the user that owns the data directory. The zero value is root.
type account struct{ User, Group string }

// ownerOf returns the owner of the data directory. kthwd goes on refusing files of another
// user, so the programs run as this one.
func ownerOf(dir string) (account, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return account{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Uid == 0 {
		return account{}, nil
	}
	a := account{strconv.Itoa(int(stat.Uid)), strconv.Itoa(int(stat.Gid))}
	if u, err := user.LookupId(a.User); err == nil {
		a.User = u.Username
	}
	if g, err := user.LookupGroupId(a.Group); err == nil {
		a.Group = g.Name
	}
	return a, nil
}
