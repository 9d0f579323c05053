package commands

import (
	"errors"
	"fmt"
	"maps"
	"os"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"kthwd/appliance/advice"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// checkSocket stands for etcd's socket, which is not made yet. No parser looks at its
// directory.
const checkSocket = "/run/kthwd/etcd.sock"

// Check makes the command lines that a start would use, and refuses what a program would
// refuse. It writes nothing: upstream's validation reads files, so those that the plan
// would make are put into memory that has a path (memfd_create(2)). Leaving them out would
// leave out what is validated with them, and a temporary directory would bring secrets to
// a disk.
func Check(c config.Controller, plan *pki.Plan) (*Lines, error) {
	m := &memory{}
	defer m.close()
	in := Input{Config: c, Layout: c.Layout(), Socket: checkSocket, Write: m.write, elsewhere: map[string]string{}}
	files := plan.Files()
	maps.Copy(files, program.RunFiles(c, in.Layout))
	for path, data := range files {
		at, err := m.write(path, data)
		if err != nil {
			return nil, err
		}
		in.elsewhere[path] = at
	}
	if signer := plan.Signer(); signer != nil {
		at, err := m.write("signer", signer)
		if err != nil {
			return nil, err
		}
		in.Signer = at
	}
	lines, err := Make(in)
	if err != nil {
		return nil, err
	}
	// Before upstream's validation, which loads some of these files without saying what to do.
	if err := cmdline.CheckPolicies(lines.Args[program.APIServer]); err != nil {
		return nil, errors.Join(err, lines.checkFiles())
	}
	if err := lines.validate(c); err != nil {
		return nil, err
	}
	return lines, lines.checkFiles()
}

// CheckWords checks only that the programs have the flags and take their values. It is what
// can be checked when the files of the data directory cannot be used.
func CheckWords(c config.Controller) error {
	l, err := merge(Input{Config: c, Layout: c.Layout(), Socket: checkSocket, Signer: c.Layout().CA()})
	if err != nil {
		return err
	}
	_, err = l.parseAll()
	return err
}

// CheckConfiguration checks a configuration for a verb that starts nothing, with exit code
// 2 for each problem that a start would refuse its flags for. Files of the data
// directory that cannot be used, or not be read by this user, are left to the start and
// to kthwd preflight.
func CheckConfiguration(c config.Controller) error {
	klog.SetLogger(cmdline.DiscardLogger)
	plan, err := pki.NewPlan(c.Layout(), Spec(c))
	if err != nil {
		return CheckWords(c)
	}
	_, err = Check(c, plan)
	return advice.Usage(err)
}

// memory holds files that exist in this process only.
type memory struct{ files []*os.File }

func (m *memory) write(name string, data []byte) (path string, err error) {
	fd, err := unix.MemfdCreate("kthwd", unix.MFD_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("hold %s in memory: %w", name, err)
	}
	path = fmt.Sprintf("/proc/self/fd/%d", fd)
	f := os.NewFile(uintptr(fd), path)
	m.files = append(m.files, f)
	if err := f.Chmod(0o600); err != nil { // checkFiles looks at it
		return "", err
	}
	_, err = f.Write(data)
	return path, err
}

func (m *memory) close() {
	for _, f := range m.files {
		f.Close()
	}
}
