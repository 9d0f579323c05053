package pki

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"kthwd/appliance/durable"
)

// Ensure makes the files missing below l.Dir and keeps existing ones. If any does not
// fit, the error joins one *Misfit for each problem, and Ensure writes nothing. With
// Spec.RenewExpired it replaces those that have expired, see Renew.
//
// Call it at every start. It blocks only while another Ensure works on the same
// directory, which takes no longer than making the files.
func Ensure(l Layout, s Spec) (Report, error) {
	if v := newSurvey(l, s); !isDir(l.Dir) { // create no directory for an invalid Spec
		// Another process may make the directory meanwhile. Then only the survey with the lock counts.
		if v.run(); len(v.problems) > 0 && !isDir(l.Dir) {
			return v.report, errors.Join(v.problems...)
		}
		if err := makeDir(l.Dir); err != nil {
			return Report{}, err
		}
	}
	held, err := lock(l.Dir, syscall.LOCK_EX)
	if err != nil {
		return Report{}, err
	}
	defer held.Close()
	if err := finishNewKeys(l); err != nil {
		return Report{}, err
	}
	return newSurvey(l, s).ensure(l.Dir)
}

// renewExpired renews what the survey has found to have expired.
func (v *survey) renewExpired() error {
	var changes []*change
	for _, f := range v.expired {
		changes = append(changes, v.reissue(f))
	}
	done, errs := v.install(changes)
	for _, r := range done {
		v.report.Renewed = append(v.report.Renewed, r.File)
	}
	return errors.Join(errs...)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// ensure carries out the survey in dir, which the caller has locked.
func (v *survey) ensure(dir string) (Report, error) {
	v.run()
	if len(v.problems) > 0 {
		return v.report, errors.Join(v.problems...)
	}
	v.report.Missing = nil
	files, err := v.files()
	if err != nil {
		return v.report, err
	}
	if len(files) > 0 {
		if err := write(dir, files); err != nil {
			return v.report, err
		}
	}
	for _, f := range files {
		v.report.Created = append(v.report.Created, f.path)
	}
	if err := v.renewExpired(); err != nil {
		return v.report, err
	}
	v.sweep()
	v.warnOfNewSecrets()
	return v.report, nil
}

// files makes every missing file, in memory.
func (v *survey) files() ([]file, error) {
	var files []file
	for _, r := range v.rows {
		made, err := v.issue(r)
		if err != nil {
			return nil, err
		}
		files = append(files, made...)
	}
	for _, k := range v.configs {
		path := k.path(v.layout)
		if !v.absent[path] {
			continue
		}
		data, err := renderKubeconfig(v.spec, k.server(v.spec), v.pairs[v.row(k.cert).issuer], v.pairs[k.cert])
		if err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
		files = append(files, file{path: path, data: data, mode: modeSecret})
	}
	for _, d := range v.documents {
		path := d.path(v.layout)
		if !v.absent[path] {
			continue
		}
		data, err := d.render()
		if err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
		files = append(files, file{path: path, data: data, mode: d.mode})
	}
	return files, nil
}

// issue makes the missing half, or both, of a pair, and stores the pair for the
// kubeconfigs and, if it is a CA, for later rows.
func (v *survey) issue(r row) ([]file, error) {
	var files []file
	l, p := r.in(v.layout), v.pairs[r.name]
	cert, key := l.Cert(r.name), l.Key(r.name)
	if v.absent[key] {
		var err error
		if p.key, err = newKey(); err != nil {
			return nil, fmt.Errorf("make %s: %w", key, err)
		}
		data, err := encodeKey(p.key)
		if err != nil {
			return nil, fmt.Errorf("make %s: %w", key, err)
		}
		files = append(files, file{path: key, data: data, mode: modeSecret, isKey: true})
	}
	if v.absent[cert] && p.staged == nil {
		var names []string
		if r.names != nil {
			names = append(r.names(v.spec), v.kept[r.name]...)
		}
		c, err := issue(r, names, p.key, v.pairs[r.issuer], v.now)
		if err != nil {
			return nil, err
		}
		p.chain = append(p.chain, c)
	}
	if v.absent[cert] {
		files = append(files, file{path: cert, data: encodeCertificates(p.chain), mode: modePublic, staged: p.staged != nil})
	}
	v.pairs[r.name] = p
	return files, nil
}

// sweep removes the hidden files of an interrupted Ensure. By now each has its own
// name, or has been made again.
func (v *survey) sweep() {
	var paths []string
	for _, r := range v.rows {
		if l := r.in(v.layout); !r.given {
			paths = append(paths, l.Cert(r.name), l.Key(r.name))
		}
	}
	for _, k := range v.configs {
		paths = append(paths, k.path(v.layout))
	}
	for _, d := range v.documents {
		paths = append(paths, d.path(v.layout))
	}
	for _, path := range paths {
		if !v.layout.isElsewhere(path) {
			os.Remove(durable.Hidden(path))
		}
	}
}
