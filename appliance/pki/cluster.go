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

// Cluster is the files of several machines that share their secrets.
type Cluster struct {
	// Dir is where everything is made first: both CAs with their keys, and what
	// the machines get copies of. It is for whoever looks after the cluster.
	Dir string

	// Addresses of every controller and load balancer, and further names.
	// kubernetes.pem must carry them all.
	Addresses []string

	Spec     Spec // ServiceIP, ClusterName and Now only; the rest is said here
	Admin    string
	Machines []Machine
}

// Machine is one directory that is ready to be copied to a machine.
type Machine struct {
	Dir    string
	Server string // its API server, for what runs beside it; "" is a load balancer, which gets ca.pem only
	Admin  string // the API server, or the load balancer, for admin.kubeconfig
	CAKey  bool   // whether it gets the key of the CA

	// Config is its configuration file, called ConfigName. One that is there
	// is kept if Fits has nothing to say about it.
	Config     []byte
	ConfigName string
	Fits       func(existing []byte) (problem string)
}

// EnsureCluster is Ensure for all machines of a cluster: it makes what is
// missing in c.Dir and in the directory of each machine, keeps what is there,
// and refuses what does not fit the others. Then nothing has been written.
func EnsureCluster(c Cluster) (Report, error) {
	report, err := c.check()
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

// dirs are those to be locked, always in the same order.
func (c Cluster) dirs() []string {
	dirs := []string{c.Dir}
	for _, m := range c.Machines {
		dirs = append(dirs, m.Dir)
	}
	return dirs
}

// check reads everything and reports all that does not fit. It writes nothing.
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

// survey is that of the directory where everything is made.
func (c Cluster) survey() *survey {
	spec := c.Spec
	spec.Addresses, spec.Local, spec.Server = c.Addresses, c.Addresses, c.Admin
	v := newSurvey(Layout{Dir: c.Dir}, spec)
	v.rows = slices.Clone(v.rows)
	for i := range v.rows {
		v.rows[i].configOnly = false // the kubeconfigs of a machine that is added later are made from them
	}
	v.configs = []config{{name: NameAdmin, cert: NameAdmin, server: localServer}}
	return v
}

// adviseToGrow says what to do about a kubernetes.pem that lacks an address: it is in
// use on all machines by now, and making it anew here would change nothing there.
func (v *survey) adviseToGrow() {
	for _, problem := range v.problems {
		m, ok := problem.(*Misfit)
		if ok && m.File == v.layout.Cert(NameKubernetes) && strings.HasPrefix(m.Problem, notValidFor) {
			m.Hint = "a cluster that runs grows with kthwd member add and kthwd join, and kthwd pki controller issues this for one more; " +
				"one that has not begun yet is made anew in another --out"
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
	copyOf string                                 // "" when it is made
	make   func() ([]byte, error)                 // once the cluster's directory is complete
	fits   func(path string, data []byte) *Misfit // judges one that is there
}

// parts lists the files of a machine in the order of the tutorial.
func (c Cluster) parts(home *survey, m Machine) (parts []part) {
	l := Layout{Dir: m.Dir}
	add := func(from, to string, mode fs.FileMode) {
		parts = append(parts, part{path: to, mode: mode, copyOf: from})
	}
	for _, r := range home.rows {
		if m.Server == "" && r.name != nameCA {
			continue
		}
		if r.name == NameAdmin || r.name == NameControllerManager || r.name == NameScheduler {
			continue // their kubeconfigs carry copies
		}
		add(home.layout.Cert(r.name), l.Cert(r.name), modePublic)
		if !r.isCA() || r.name == nameCA && m.CAKey {
			add(home.layout.Key(r.name), l.Key(r.name), modeSecret)
		}
	}
	if m.Server != "" {
		for _, k := range []struct{ name, server string }{
			{NameAdmin, m.Admin}, {NameControllerManager, m.Server}, {NameScheduler, m.Server},
		} {
			parts = append(parts, part{path: l.Kubeconfig(k.name), mode: modeSecret,
				make: func() ([]byte, error) {
					return renderKubeconfig(home.spec, k.server, home.pairs[nameCA], home.pairs[k.name])
				},
				fits: func(path string, data []byte) *Misfit { return fitsConfig(home, path, data, k.server) },
			})
		}
		for _, d := range home.documents {
			add(d.path(home.layout), d.path(l), d.mode)
		}
	}
	return append(parts, part{path: filepath.Join(m.Dir, m.ConfigName), mode: modePublic,
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

// missing makes what the machine lacks, as far as the cluster's directory has
// it, and lists what it has. All that does not fit is joined in the error.
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
	if !m.CAKey { // one that was asked for once
		if key := (Layout{Dir: m.Dir}).CAKey(); there(key) {
			problems = append(problems, &Misfit{File: key, Problem: "is here, though it is not asked for",
				Hint: "ask for it with --with-ca-key, or move it away"})
		}
	}
	return files, kept, errors.Join(problems...)
}

func there(path string) bool {
	_, _, err := read(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// content is nil as long as the cluster's directory is not complete.
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

// judge compares a file that is there with what it ought to be.
func (p part) judge(home *survey, data []byte) *Misfit {
	if p.copyOf == "" {
		return p.fits(p.path, data)
	}
	const hint = "the two come from different runs, or were made anew in one place only: keep the one that the cluster uses"
	original, _, err := read(p.copyOf)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &Misfit{File: p.path, Problem: "is here without what it is a copy of,", Other: p.copyOf,
			Hint: "bring " + p.copyOf + " back, or move the copies away"}
	case err != nil:
		return nil // that is said already
	case !bytes.Equal(data, original):
		return &Misfit{File: p.path, Problem: "differs from", Other: p.copyOf, Hint: hint}
	}
	return nil
}

// fitsConfig judges a kubeconfig that a machine has.
func fitsConfig(home *survey, path string, data []byte, server string) *Misfit {
	a, err := parseKubeconfig(data, filepath.Dir(path))
	if err != nil {
		return &Misfit{File: path, Problem: err.Error(), Hint: "restore it, or move it away"}
	}
	ca := home.pairs[nameCA]
	if ca.chain != nil && !slices.ContainsFunc(a.cas, func(c *x509.Certificate) bool { return c.Equal(ca.chain[0]) }) {
		return &Misfit{File: path, Problem: "the certificate authority in it is not", Other: home.layout.CA(),
			Hint: "the two come from different runs: move it away and kthwd makes a new one"}
	}
	if a.server != server {
		return otherServer(path, a.server, server)
	}
	return nil
}
