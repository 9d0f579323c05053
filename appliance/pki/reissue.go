package pki

import (
	"cmp"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"kthwd/appliance/durable"
)

// Renewed is a file that has a new certificate.
type Renewed struct {
	Name, File string
	Until      time.Time // the end of the new one
	Kept       string    // the old file
	Shortened  bool      // the new one ends with its CA, before its own life is over
	NewKey     bool      // it is for another key than the old one
}

// RenewOptions says what Renew does.
type RenewOptions struct {
	Names []string      // of RenewalNames
	Due   bool          // and all that are due
	All   bool          // and all that kthwd renews by itself when they are due
	Moved string        // name of a CA: and all of it that another CA has signed than the one of the same file whose key is here
	CAKey []byte        // the key of that CA, where the directory has another one or none; nil for that of the directory
	Life  time.Duration // of new certificates; 0 means a year
	Now   func() time.Time

	NewKey bool // for another key, too: somebody may know the old one
}

// Renew puts new certificates in the place of those in the directory, for the same names and, without
// NewKey, the same keys. Each file is replaced in one step, when the new one is whole and the old
// one is kept; a crash leaves the one or the other. Between a new key and its certificate it leaves
// both on the disk, and the next Renew or Ensure ends it. It blocks while another call works on the
// directory. The error joins one for each file that was not renewed; the others are.
func Renew(l Layout, o RenewOptions) (done []Renewed, err error) {
	if err := checkRenewalNames(o.Names); err != nil {
		return nil, err
	}
	held, err := lock(l.Dir, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	if err := finishNewKeys(l); err != nil {
		return nil, err
	}
	v := newSurvey(l, Spec{LeafLife: o.Life, Now: o.Now})
	v.moves = o.Moved
	v.loadCAs()
	if o.CAKey != nil {
		v.signWith(o.Moved, o.CAKey)
	}
	if err := errors.Join(v.problems...); err != nil {
		return nil, err
	}
	files := v.leafFiles()
	errs := missingNames(o.Names, files)
	var changes []*change
	keys := keyMaker{}
	for _, f := range files {
		state := v.state(f)
		asked := slices.Contains(o.Names, f.name) || o.All && f.row.renewed || o.Moved != "" && o.Moved == f.row.issuer && v.moved(f)
		if !asked && !(o.Due && state.IsDue(v.now)) {
			continue
		}
		if state.Cannot != "" {
			errs = append(errs, f.refused(state.Cannot, state.Hint))
			continue
		}
		if o.NewKey {
			if v.layout.isElsewhere(f.keyPath) {
				errs = append(errs, f.refused("its key is a file of yours, which files: names", ""))
				continue
			}
			if err := keys.give(&f); err != nil {
				errs = append(errs, f.refused(err.Error(), ""))
				continue
			}
		}
		changes = append(changes, v.reissue(f))
	}
	done, failed := v.install(changes)
	return done, errors.Join(append(errs, failed...)...)
}

// signWith makes a key sign for the CA of that name. What nothing can renew here later has a long life.
func (v *survey) signWith(name string, caKey []byte) {
	key, err := parseKey(caKey)
	if err != nil {
		v.problems = append(v.problems, err)
		return
	}
	ca := v.pairs[name]
	if ca.key == nil {
		longLived(v.rows, func(r row) bool { return r.issuer == name })
	}
	ca.key = key
	ca.signerFirst(v.now)
	v.pairs[name] = ca
}

func missingNames(names []string, files []leafFile) (errs []error) {
	for _, name := range names {
		if !slices.ContainsFunc(files, func(f leafFile) bool { return f.name == name }) {
			errs = append(errs, fmt.Errorf("%s: no file with this certificate is here", name))
		}
	}
	return errs
}

func (f leafFile) refused(reason, hint string) error {
	return &Failed{File: f.path, Err: &Misfit{File: f.path, Problem: "cannot be renewed, because " + reason, Hint: hint}}
}

// A change is a file with the certificate that is to take the place of the old one.
type change struct {
	leafFile
	chain     []*x509.Certificate
	shortened bool
	kept      string
	new       []byte
	half      bool  // the new key has its name, and the certificate has not
	err       error // what kept it from being made
}

// reissue makes a certificate like the one in the file.
func (v *survey) reissue(f leafFile) *change {
	cert, err := v.again(f)
	if err != nil {
		return &change{leafFile: f, err: err}
	}
	return &change{leafFile: f, chain: []*x509.Certificate{cert},
		shortened: cert.NotAfter.Before(v.now.Add(cmp.Or(f.row.life, lifetime)).Add(-time.Second))}
}

// again makes a certificate like the one in the file.
func (v *survey) again(f leafFile) (*x509.Certificate, error) {
	ca, like := v.pairs[f.row.issuer], f.pair.chain[0]
	template, err := f.row.template(nil, f.public(), v.now)
	if err != nil {
		return nil, err
	}
	template.RawSubject = like.RawSubject
	template.DNSNames, template.IPAddresses = like.DNSNames, like.IPAddresses
	template.EmailAddresses, template.URIs = like.EmailAddresses, like.URIs
	template.ExtKeyUsage, template.UnknownExtKeyUsage = like.ExtKeyUsage, like.UnknownExtKeyUsage
	if like.KeyUsage != 0 {
		template.KeyUsage = like.KeyUsage
	}
	within(template, ca.chain[0])
	der, err := x509.CreateCertificate(rand.Reader, template, ca.chain[0], f.public(), ca.key)
	var cert *x509.Certificate
	if err == nil {
		cert, err = x509.ParseCertificate(der)
	}
	if err == nil {
		err = verify([]*x509.Certificate{cert}, ca.chain, v.now)
	}
	if err != nil {
		return nil, fmt.Errorf("issue %s: %w", f.path, err)
	}
	return cert, nil
}

// install keeps the old files, then replaces each in one step. The disk is waited for a few
// times only, however many files there are: it may be etcd's. Files that fail stay as they are.
func (v *survey) install(changes []*change) (done []Renewed, errs []error) {
	ready := func() (all []*change) {
		for _, c := range changes {
			if c.err == nil {
				all = append(all, c)
			}
		}
		return all
	}
	if len(ready()) > 0 {
		v.keepAll(ready())
	}
	var staging sync.WaitGroup
	for _, c := range ready() {
		staging.Go(c.stage) // at once: the disk flushes several files as fast as one
	}
	staging.Wait()
	if slices.ContainsFunc(ready(), func(c *change) bool { return c.newKey != nil }) {
		if err := durable.Sync(v.layout.Dir); err != nil { // a crash from now on finds each certificate beside its key
			for _, c := range ready() {
				c.err = err
			}
		}
	}
	for _, c := range ready() {
		c.put()
	}
	if len(ready()) > 0 {
		if err := durable.Sync(v.layout.Dir); err != nil {
			errs = append(errs, err)
		}
	}
	for _, c := range changes {
		if c.err != nil {
			c.clear()
			errs = append(errs, &Failed{File: c.path, Err: fmt.Errorf("renew %s: %w", c.path, c.err)})
			continue
		}
		done = append(done, Renewed{Name: c.name, File: c.path, Until: c.chain[0].NotAfter, Kept: c.kept, Shortened: c.shortened, NewKey: c.newKey != nil})
	}
	return done, errs
}

// stage writes the new file, and its new key, under their hidden names.
func (c *change) stage() {
	if c.new, c.err = c.with(c.chain...); c.err != nil {
		return
	}
	if c.err = hide(c.path, c.new, c.mode); c.err != nil {
		return
	}
	if key, is := c.ofKey(); is {
		var data []byte
		if data, c.err = encodeKey(c.newKey); c.err == nil {
			c.err = hide(key.path, data, key.mode)
		}
	}
}

// hide writes a file under its hidden name.
func hide(path string, data []byte, mode fs.FileMode) error {
	if err := os.Remove(durable.Hidden(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.Create(durable.Hidden(path), data, mode)
}

// put gives the new files their names, the key first: see finishNewKeys.
func (c *change) put() {
	if key, is := c.ofKey(); is {
		if c.err = os.Rename(durable.Hidden(key.path), key.path); c.err != nil {
			return
		}
		c.half = true
	}
	if c.err = os.Rename(durable.Hidden(c.path), c.path); c.err == nil {
		c.half = false
	}
}

// clear removes the hidden files of a change that has failed, unless its key is in place: then the
// next renewal ends it.
func (c *change) clear() {
	if c.half {
		return
	}
	_ = os.Remove(durable.Hidden(c.path)) // c.err says more
	if key, is := c.ofKey(); is {
		_ = os.Remove(durable.Hidden(key.path))
	}
}

// keptCopies is how many old versions of a file stay.
const keptCopies = 2

// KeptCertificates is the directory of files that a renewal has replaced.
func (l Layout) KeptCertificates() string { return filepath.Join(l.Kept(), "certificates") }

// keepAll keeps the old files.
func (v *survey) keepAll(changes []*change) {
	err := makeKept(v.layout)
	var keeping sync.WaitGroup
	for _, c := range changes {
		if c.err = err; err == nil {
			keeping.Go(func() { // see install
				if c.kept, c.err = keep(v.layout.KeptCertificates(), c.leafFile, v.now); c.err != nil {
					return
				}
				if key, is := c.ofKey(); is {
					_, c.err = keep(v.layout.KeptCertificates(), key, v.now)
				}
			})
		}
	}
	keeping.Wait()
	for _, c := range changes {
		if c.err != nil {
			c.err = fmt.Errorf("keep the old one: %w", c.err)
		}
	}
}

func makeKept(l Layout) error {
	for _, d := range []string{l.Kept(), l.KeptCertificates()} {
		err := os.Mkdir(d, modeDir)
		if err == nil {
			err = durable.Sync(filepath.Dir(d))
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if info, err := os.Lstat(d); err != nil || !info.IsDir() {
			return errors.Join(err, fmt.Errorf("%s is no directory", d))
		}
	}
	return nil
}

// keep copies the file into dir, and removes all older copies but one. A copy that an
// interrupted renewal has made counts. A second name of the file in place of a copy would keep
// programs that follow the file from seeing that it was replaced: they follow the old one.
func keep(dir string, f leafFile, now time.Time) (path string, err error) {
	prefix := filepath.Base(f.path) + "."
	old := keptOf(dir, prefix)
	if n := len(old); n > 0 {
		path = filepath.Join(dir, old[n-1])
		if data, _, err := read(path); err == nil && string(data) == string(f.data) {
			return path, nil
		}
	}
	path = filepath.Join(dir, prefix+now.UTC().Format("20060102T150405.000000000Z"))
	if err := durable.Write(path, f.data, f.mode); err != nil {
		return "", err
	}
	for len(old) >= keptCopies {
		if err := os.Remove(filepath.Join(dir, old[0])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		old = old[1:]
	}
	return path, nil
}

// keptOf lists the kept versions of a file, the oldest first.
func keptOf(dir, prefix string) (names []string) {
	all, _ := os.ReadDir(dir) // sorted by name, which ends with the time
	for _, e := range all {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names
}
