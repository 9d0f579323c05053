package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Cluster describes the files of several machines that share their secrets.
type Cluster struct {
	// Dir is where everything is made first: all CAs with their keys, and the
	// originals of the machines' copies. Only the cluster's administrator needs it.
	Dir string

	// Addresses are those of every controller and load balancer, and further names.
	// kubernetes.pem must contain them all.
	Addresses []string

	Spec     Spec // ServiceIP, ClusterName and Now only; Cluster sets the rest
	Admin    string
	Machines []Machine
}

// Machine describes a directory to copy to one machine.
type Machine struct {
	Dir    string
	Server string // URL of its API server, for programs on the machine; "" means a load balancer, which receives only ca.pem
	Admin  string // URL of the API server or load balancer, for admin.kubeconfig
	CAKey  bool   // the machine receives the keys of the cluster's CA and of etcd's

	// Config is the content of its configuration file, called ConfigName. An
	// existing one is kept if Fits returns no problem.
	Config     []byte
	ConfigName string
	Fits       func(existing []byte) (problem string)
}

// EnsureCluster is Ensure for all machines of a cluster. It makes the files missing
// in c.Dir and in the directory of each machine, and keeps existing ones. If a file
// does not fit the others, it reports every misfit and writes nothing.
func EnsureCluster(c Cluster) (Report, error) {
	report, err := c.check()
	if err != nil && isDir(c.Dir) {
		report, err = c.checkLocked()
	}
	if err != nil {
		return report, err
	}
	for _, dir := range c.dirs() {
		if err := makeDir(dir); err != nil {
			return Report{}, err
		}
		held, err := lock(dir, syscall.LOCK_EX)
		if err != nil {
			return Report{}, err
		}
		defer held.Close()
	}
	home := c.survey()
	if report, err = home.ensure(c.Dir); err != nil {
		return report, err
	}
	for _, m := range c.Machines {
		files, kept, err := c.missing(home, m)
		if err == nil && len(files) > 0 {
			err = write(m.Dir, files)
		}
		if err != nil {
			return report, err
		}
		for _, f := range files {
			report.Created = append(report.Created, f.path)
		}
		report.Kept = append(report.Kept, kept...)
	}
	return report, nil
}

// dirs lists the directories to lock, always in the same order.
func (c Cluster) dirs() []string {
	dirs := []string{c.Dir}
	for _, m := range c.Machines {
		dirs = append(dirs, m.Dir)
	}
	return dirs
}

// checkLocked is check while no other EnsureCluster writes: without the lock of c.Dir, a half of
// its files looks like a misfit.
func (c Cluster) checkLocked() (Report, error) {
	held, err := lock(c.Dir, syscall.LOCK_SH)
	if err != nil {
		return Report{}, err
	}
	defer held.Close()
	return c.check()
}

// check reads every file and reports every misfit. It writes nothing.
func (c Cluster) check() (Report, error) {
	home := c.survey()
	home.run()
	c.checkAdmin(home)
	home.adviseToGrow()
	problems := home.problems
	for _, m := range c.Machines {
		_, _, err := c.missing(home, m)
		if err != nil {
			problems = append(problems, err)
		}
	}
	return home.report, errors.Join(problems...)
}

// survey returns the survey of c.Dir.
func (c Cluster) survey() *survey {
	spec := c.Spec
	spec.Addresses, spec.Local, spec.Server = c.Addresses, c.Addresses, c.Admin
	v := newSurvey(Layout{Dir: c.Dir}, spec)
	v.rows = slices.Clone(v.rows)
	longLived(v.rows, func(r row) bool { return !v.row(r.issuer).signsControllers() || !c.renewedEverywhere() })
	for i := range v.rows {
		if v.rows[i].name != NameSuperAdmin {
			v.rows[i].configOnly = false // the kubeconfigs of machines added later are made from them
		}
	}
	v.configs = slices.DeleteFunc(slices.Clone(v.configs), func(k config) bool { return k.local })
	return v
}

// renewedEverywhere reports whether every controller has the keys to renew its certificates,
// of which all have copies.
func (c Cluster) renewedEverywhere() bool {
	return !slices.ContainsFunc(c.Machines, func(m Machine) bool { return m.Server != "" && !m.CAKey })
}

// adviseToGrow adds a hint to a kubernetes.pem or etcd.pem that lacks an address. All machines
// already use that file, so making it again here would change nothing there.
func (v *survey) adviseToGrow() {
	for _, problem := range v.problems {
		m, ok := errors.AsType[*Misfit](problem)
		if ok && (m.File == v.layout.Cert(NameKubernetes) || m.File == v.layout.Cert(NameEtcd)) && strings.HasPrefix(m.Problem, notValidFor) {
			m.Hint = "extend a running cluster with kthwd member add and kthwd join; kthwd pki controller issues this for one more controller; " +
				"make a cluster that has not started yet again, in another --out"
		}
	}
}

func (c Cluster) checkAdmin(home *survey) {
	if a := home.access[NameAdmin]; a != nil && a.server != c.Admin {
		home.misfit(otherServer(home.layout.Kubeconfig(NameAdmin), a.server, c.Admin))
	}
}

func otherServer(path, got, want string) *Misfit {
	return &Misfit{File: path, Problem: fmt.Sprintf("its server is %s, want %s", got, want),
		Hint: "move it away and kthwd makes a new one"}
}

// A part is one file of a machine: a copy of the one in the cluster's
// directory, or made for the machine.
type part struct {
	path   string
	mode   fs.FileMode
	copyOf string                                 // path of the original; "" when it is made
	make   func() ([]byte, error)                 // called once the cluster's directory is complete
	fits   func(path string, data []byte) *Misfit // checks an existing file
}

// parts lists the files of a machine in the order of the tutorial.
func (c Cluster) parts(home *survey, m Machine) (parts []part) {
	l := Layout{Dir: m.Dir}
	add := func(from, to string, mode fs.FileMode) {
		parts = append(parts, part{path: to, mode: mode, copyOf: from})
	}
	for _, r := range home.rows {
		if m.Server == "" && r.name != NameCA {
			continue
		}
		if r.org == "system:masters" || slices.Contains(machineConfigs, r.name) {
			continue // the one stays with the CA; kubeconfigs contain copies of the others
		}
		add(home.layout.Cert(r.name), l.Cert(r.name), modePublic)
		if !r.isCA() || r.signsControllers() && m.CAKey {
			add(home.layout.Key(r.name), l.Key(r.name), modeSecret)
		}
	}
	if m.Server != "" {
		for _, k := range []struct{ name, server string }{
			{NameAdmin, m.Admin}, {NameControllerManager, m.Server}, {NameScheduler, m.Server},
		} {
			parts = append(parts, part{path: l.Kubeconfig(k.name), mode: modeSecret,
				make: func() ([]byte, error) {
					return renderKubeconfig(home.spec, k.server, home.pairs[NameCA], home.pairs[k.name])
				},
				fits: func(path string, data []byte) *Misfit { return fitsConfig(home, path, data, k.server) },
			})
		}
		for _, d := range home.documents {
			add(d.path(home.layout), d.path(l), d.mode)
		}
	}
	return append(parts, part{path: filepath.Join(m.Dir, m.ConfigName), mode: modeConfig,
		make: func() ([]byte, error) { return m.Config, nil },
		fits: func(path string, data []byte) *Misfit {
			problem := m.Fits(data)
			if problem == "" {
				return nil
			}
			return &Misfit{File: path, Problem: problem, Hint: "correct it, or move it away and kthwd makes a new one"}
		},
	})
}

// missing makes the files that the machine lacks, as far as the cluster's directory
// is complete, and lists those that it has. The error joins every misfit.
func (c Cluster) missing(home *survey, m Machine) (files []file, kept []string, err error) {
	var problems []error
	for _, p := range c.parts(home, m) {
		there, _, err := read(p.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			data, err := p.content(home)
			if err != nil {
				problems = append(problems, err)
			}
			files = append(files, file{path: p.path, data: data, mode: p.mode, isKey: strings.HasSuffix(p.path, "-key.pem")})
			continue
		case err != nil:
			problems = append(problems, err)
			continue
		}
		if misfit := p.judge(home, there); misfit != nil {
			problems = append(problems, misfit)
		}
		kept = append(kept, p.path)
	}
	if !m.CAKey { // an earlier call may have requested it
		for _, key := range []string{(Layout{Dir: m.Dir}).CAKey(), (Layout{Dir: m.Dir}).EtcdCAKey()} {
			if there(key) {
				problems = append(problems, &Misfit{File: key, Problem: "exists, although it is not requested",
					Hint: "request it with --with-ca-key, or move it away"})
			}
		}
	}
	return files, kept, errors.Join(problems...)
}

func there(path string) bool {
	_, _, err := read(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// content returns the content of the file, or nil while the cluster's directory is
// incomplete.
func (p part) content(home *survey) ([]byte, error) {
	if len(home.report.Missing) > 0 || len(home.problems) > 0 {
		return nil, nil
	}
	if p.copyOf == "" {
		return p.make()
	}
	data, _, err := read(p.copyOf)
	return data, err
}

// judge compares an existing file with what it should be.
func (p part) judge(home *survey, data []byte) *Misfit {
	if p.copyOf == "" {
		return p.fits(p.path, data)
	}
	const hint = "the two come from different runs, or one of them was made again: keep the one that the cluster uses"
	original, _, err := read(p.copyOf)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &Misfit{File: p.path, Problem: "exists without its original", Other: p.copyOf,
			Hint: "restore " + p.copyOf + ", or move the copies away"}
	case err != nil:
		return nil // the survey reports it
	case !bytes.Equal(data, original):
		return &Misfit{File: p.path, Problem: "differs from", Other: p.copyOf, Hint: hint}
	}
	return nil
}

// fitsConfig checks an existing kubeconfig of a machine.
func fitsConfig(home *survey, path string, data []byte, server string) *Misfit {
	a, err := parseKubeconfig(data, filepath.Dir(path))
	if err != nil {
		return &Misfit{File: path, Problem: err.Error(), Hint: "restore it, or move it away"}
	}
	ca := home.pairs[NameCA]
	if ca.chain != nil && !slices.ContainsFunc(a.cas, func(c *x509.Certificate) bool { return c.Equal(ca.chain[0]) }) {
		return &Misfit{File: path, Problem: "the certificate authority in it is not", Other: home.layout.CA(),
			Hint: "the two come from different runs: move it away and kthwd makes a new one"}
	}
	if a.server != server {
		return otherServer(path, a.server, server)
	}
	return nil
}
