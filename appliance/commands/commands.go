// Package commands makes the command lines of the four programs and checks them as the
// programs themselves do.
//
// Make puts the user's flags over kthwd's. Lines.Parse reads the result with upstream's
// own options. Check does both before anything is written: files that a start would
// make exist only in memory by then. A start calls Check first, makes its files, and
// then calls Make and Parse with the real paths.
//
// Feature gates are process-wide, and Check sets them: only one Check may be made in a
// process that serves. The package starts nothing.
package commands

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"kthwd/appliance/advice"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/config"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// Input is what the command lines are made of.
type Input struct {
	Config config.Controller
	Layout pki.Layout
	Socket string // path of etcd's unix socket, in the form for etcd and its clients
	Signer string // file with the one CA certificate that belongs to the CA's key; "" if the key is kept elsewhere

	// Write writes a file of the run directory and returns its path.
	Write func(name string, data []byte) (path string, err error)

	elsewhere map[string]string // where a file is for now, by its path
}

// Lines are the command lines of the four programs.
type Lines struct {
	Args      map[string][]program.Arg // by program
	Users     map[string][]program.Arg // the user's among them, with old flags translated
	Warnings  []string                 // of what was translated or dropped
	Overrides []program.Override       // kthwd's flags that the user's have replaced
	Verbosity map[string]int           // the user's --v, by program
}

// Make makes the command lines: kthwd's flags, then the user's over them, with old flags
// and files translated. Its errors are all problems at once.
func Make(in Input) (*Lines, error) {
	l, err := merge(in)
	if err != nil {
		return nil, err
	}
	return l, l.oldFiles(in)
}

// merge puts the user's flags over kthwd's.
func merge(in Input) (*Lines, error) {
	l := &Lines{Args: map[string][]program.Arg{}, Users: map[string][]program.Arg{}, Verbosity: map[string]int{}}
	c := in.Config
	var errs []error
	for _, p := range []struct {
		program string
		ours    []program.Arg
		users   []string
	}{
		{program.Etcd, program.WithEtcdFiles(program.EtcdArgs(c, in.Layout, in.Socket), pki.StageOf(in.Layout).Files(in.Layout)), c.EtcdArgs},
		{program.APIServer, program.WithEmulation(program.APIServerArgs(c, in.Layout, in.Socket), etcdfiles.Emulates(in.Layout)), c.APIServerArgs},
		{program.ControllerManager, program.WithSigner(program.ControllerManagerArgs(c, in.Layout), in.Signer), c.ControllerManagerArgs},
		{program.Scheduler, program.SchedulerArgs(c, in.Layout), c.SchedulerArgs},
	} {
		p.ours = program.WithEtcdClient(p.ours, l.Args[program.Etcd])
		users, old := cmdline.Translate(p.program, program.ParseUser(p.users))
		users, dropped, refused := program.CheckOwned(p.program, p.ours, users)
		errs = append(errs, refused...)
		l.Warnings = append(append(l.Warnings, old...), dropped...)
		l.Users[p.program] = l.takeVerbosity(p.program, users)
		merged, overrides := program.Merge(p.program, p.ours, l.Users[p.program])
		l.Overrides = append(l.Overrides, overrides...)
		l.Args[p.program] = in.moved(merged)
	}
	return l, advice.Usage(errors.Join(errs...))
}

// moved replaces the paths of files that are elsewhere for now.
func (in Input) moved(args []program.Arg) []program.Arg {
	for i, a := range args {
		if path, ok := in.elsewhere[a.Value]; ok {
			args[i].Value = path
		}
	}
	return args
}

// takeVerbosity takes out --v=n, which upstream would apply to its own logging.
func (l *Lines) takeVerbosity(name string, users []program.Arg) (rest []program.Arg) {
	for _, u := range users {
		if u.Key != "v" {
			rest = append(rest, u)
			continue
		}
		n, err := strconv.Atoi(u.Value)
		if err != nil {
			l.Warnings = append(l.Warnings, fmt.Sprintf("%s: %s ignored: %q is no number", name, u, u.Value))
			continue
		}
		l.Verbosity[name] = n
	}
	return rest
}

// oldFiles reads the configuration files that may have an old format.
func (l *Lines) oldFiles(in Input) error {
	warning, err := cmdline.EncryptionWarning(program.Value(l.Args[program.APIServer], "encryption-provider-config"))
	if err != nil {
		return err
	}
	file, schedWarning, err := cmdline.SchedulerConfig(program.Value(l.Args[program.Scheduler], "config"), in.Layout, in.Write)
	if err != nil {
		return err
	}
	for _, w := range []string{warning, schedWarning} {
		if w != "" {
			l.Warnings = append(l.Warnings, w)
		}
	}
	if file == "" {
		return nil
	}
	if _, err := schedoptions.LoadConfigFromFile(cmdline.DiscardLogger, file); err != nil {
		return advice.With(fmt.Errorf("%s: %s: %w", program.Scheduler, file, err), "correct the file; or move it away, and the scheduler uses its flags")
	}
	l.schedulerFile(file)
	return nil
}

// schedulerFile makes the scheduler read a file.
func (l *Lines) schedulerFile(file string) {
	l.Args[program.Scheduler], _ = program.Merge(program.Scheduler, l.Args[program.Scheduler], []program.Arg{{Key: "config", Value: file}})
}

// Offline makes the command lines that a start would use, for a verb that shows them. It
// neither checks nor makes the files that they name. The configuration must be resolved and
// valid.
func Offline(c config.Controller) (*Lines, error) {
	l, _, err := OfflineFiles(c)
	if errors.Is(err, fs.ErrPermission) { // another user's directory: the flags are known without its files
		return l, nil
	}
	return l, err
}

// OfflineFiles is Offline with the content of the files that a start would write into the run
// directory, by path. They hold no secrets. With fs.ErrPermission the command lines are there
// all the same, as far as they are known without the files of the data directory.
func OfflineFiles(c config.Controller) (*Lines, map[string][]byte, error) {
	layout := c.Layout()
	files := program.RunFiles(c, layout)
	signer, data := offlineSigner(layout)
	if data != nil {
		files[signer] = data
	}
	l, err := merge(Input{Config: c, Layout: layout, Socket: layout.EtcdSocket(), Signer: signer})
	if err != nil {
		return nil, nil, err
	}
	file, _, err := cmdline.SchedulerConfig(program.Value(l.Args[program.Scheduler], "config"), layout, func(name string, data []byte) (string, error) {
		path := filepath.Join(layout.Run(), name)
		files[path] = data
		return path, nil
	})
	if err == nil && file != "" {
		l.schedulerFile(file)
	}
	return l, files, err
}

// Spec is what the files of a data directory must fit. A file in whose place the user's flags
// name another one, or take out the flag, is not used.
func Spec(c config.Controller) pki.Spec {
	spec, l := c.PKISpec(), c.Layout()
	given := func(args []string, key string) bool {
		return slices.ContainsFunc(program.ParseUser(args), func(a program.Arg) bool { return a.Key == key || a.Key == key+"-" })
	}
	if given(c.APIServerArgs, "encryption-provider-config") {
		spec.Unused = append(spec.Unused, l.EncryptionConfig())
	}
	if given(c.APIServerArgs, "service-account-signing-key-file") && given(c.ControllerManagerArgs, "service-account-private-key-file") {
		spec.Unused = append(spec.Unused, l.Key(pki.NameServiceAccount))
	}
	return spec
}

// Profiled returns the flags that the configuration's profile sets, by program.
func Profiled(c config.Controller) map[string][]string {
	guide := c
	guide.Profile = config.ProfileGuide
	with, without, keys := ours(c), ours(guide), map[string][]string{}
	for name := range with {
		keys[name] = program.FromProfile(with[name], without[name])
	}
	return keys
}

// ours are kthwd's own flags by program.
func ours(c config.Controller) map[string][]program.Arg {
	l := c.Layout()
	return map[string][]program.Arg{
		program.Etcd: program.EtcdArgs(c, l, l.EtcdSocket()), program.APIServer: program.APIServerArgs(c, l, l.EtcdSocket()),
		program.ControllerManager: program.ControllerManagerArgs(c, l), program.Scheduler: program.SchedulerArgs(c, l),
	}
}

// offlineSigner is the file with which a start would sign, and its content if a start writes
// it. A CA that does not exist yet, or that this user cannot read, is taken for one with its key
// beside it.
func offlineSigner(l pki.Layout) (path string, data []byte) {
	if _, err := os.Stat(l.CA()); err != nil {
		return l.CA(), nil
	}
	signer, data, err := pki.Signer(l)
	switch {
	case err != nil:
		return l.CA(), nil
	case data != nil:
		return filepath.Join(l.Run(), pki.SignerFile), data
	}
	return signer, nil
}
