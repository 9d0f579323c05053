package pki

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"kthwd/appliance/durable"
	"kthwd/appliance/text"
)

// Check reads what Ensure would read and returns the files that it would make, as
// Report.Missing, or why it would refuse. It writes nothing. In a data directory that
// does not exist every file is missing, which is not an error.
func Check(l Layout, s Spec) (Report, error) {
	if _, err := os.Stat(l.Dir); err == nil {
		held, err := lock(l.Dir, syscall.LOCK_SH)
		if err != nil {
			return Report{}, err
		}
		defer held.Close()
	}
	v := newSurvey(l, s)
	v.run()
	return v.report, errors.Join(v.problems...)
}

// A survey is one reading of all files: their content, their problems and which are
// missing. It is the plan that Ensure carries out.
type survey struct {
	layout    Layout
	spec      Spec
	now       time.Time
	rows      []row
	configs   []config
	documents []document

	pairs    map[string]pair // by row name
	access   map[string]*access
	absent   map[string]bool // files that are needed but missing
	report   Report
	problems []error

	expired    []leafFile          // that ensure renews: see RenewExpired
	kept       map[string][]string // names that a new certificate keeps, by row: see keepNames
	moves      string              // name of the CA: a leaf of another one in its file is signed anew
	newSecrets []secret            // made beside existing data, because the Spec says so
}

func newSurvey(l Layout, s Spec) *survey {
	return &survey{
		layout: l, spec: s, now: s.now(),
		rows: s.shortLived(rowsOf(l)), configs: kubeconfigs, documents: documents,
		pairs: map[string]pair{}, access: map[string]*access{}, absent: map[string]bool{}, kept: map[string][]string{},
	}
}

// shortLived gives the certificates that kthwd renews the life of those.
func (s Spec) shortLived(rows []row) []row {
	for i, r := range rows {
		if r.renewed {
			rows[i].life = cmp.Or(s.LeafLife, leafLife)
		}
	}
	return rows
}

// longLived undoes shortLived for certificates that go where nothing renews them.
func longLived(rows []row, which func(row) bool) {
	for i, r := range rows {
		if r.renewed && r.name != NameAdmin && which(r) {
			rows[i].life = 0
		}
	}
}

// run reads all files, then checks all, so that no misfit hides another.
func (v *survey) run() {
	v.problems = append(v.problems, v.spec.validate()...)
	if !v.checkDir() {
		return
	}
	for _, r := range v.rows {
		v.pairs[r.name] = v.load(r)
	}
	for _, k := range v.configs {
		v.loadConfig(k)
	}
	for _, r := range v.rows {
		if r.isCA() {
			v.checkCA(r)
		} else {
			v.checkLeaf(r)
		}
	}
	for _, k := range v.configs {
		v.checkConfig(k)
	}
	for _, d := range v.documents {
		v.checkDocument(d)
	}
	for _, r := range v.rows {
		if r.isCA() {
			v.checkSigner(r)
		}
	}
	v.checkSecrets()
}

func (v *survey) misfit(m *Misfit) { v.problems = append(v.problems, m) }

func (v *survey) warn(format string, args ...any) {
	v.report.Warnings = append(v.report.Warnings, fmt.Sprintf(format, args...))
}

// want records a file that Ensure will make.
func (v *survey) want(path string) {
	if v.layout.isElsewhere(path) {
		v.misfit(v.layout.missing(path))
		return
	}
	v.absent[path] = true
	v.report.Missing = append(v.report.Missing, path)
}

// checkDir reports whether the directory can be searched for files.
func (v *survey) checkDir() bool {
	dir := v.layout.Dir
	if dir == "" {
		v.problems = append(v.problems, errors.New("data directory: not named"))
		return false
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true
	case errors.Is(err, fs.ErrPermission):
		v.misfit(unreadable(dir, info))
		return false
	case err != nil:
		v.problems = append(v.problems, err)
		return false
	case !info.IsDir():
		v.misfit(&Misfit{File: dir, Problem: "not a directory"})
		return false
	}
	if misfit := OpenToOthers(dir); misfit != nil {
		v.misfit(misfit)
	}
	return true
}

// OpenToOthers returns a Misfit if group or others can write to the directory: they could
// put files and links of their own there, and replace keys. A sticky bit prevents only the
// second. A directory that does not exist has no Misfit.
func OpenToOthers(dir string) *Misfit {
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm()&0o022 == 0 {
		return nil
	}
	return &Misfit{File: dir, Problem: fmt.Sprintf("writable by group or others (mode %04o), who can replace the keys in it", info.Mode().Perm()), Hint: "chmod go-w " + text.ShellWord(dir)}
}

// Permissions of others that make a file a Misfit. A key file must not even be open
// to a group, while a kubeconfig is sometimes shared with one on purpose.
const (
	forNobodyElse fs.FileMode = 0o066
	forTheGroup   fs.FileMode = 0o006
	forAll        fs.FileMode = 0
)

// read reads a file and checks its permissions. The data of a misfit is nil.
func (v *survey) read(path string, refuse fs.FileMode) (data []byte, there bool) {
	data, info, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false
	}
	if err != nil {
		v.problems = append(v.problems, err)
		return nil, true
	}
	v.report.Kept = append(v.report.Kept, path)
	mode := info.Mode().Perm()
	if refuse == forAll && HoldsPrivateKey(data) { // any program that reads certificates passes over it
		refuse = forNobodyElse
	}
	switch {
	case refuse == forTheGroup && mode&refuse != 0:
		v.misfit(&Misfit{File: path, Problem: fmt.Sprintf("readable or writable by others (mode %04o)", mode), Hint: "chmod 600 " + text.ShellWord(path)})
	case mode&refuse != 0:
		v.misfit(&Misfit{File: path, Problem: fmt.Sprintf("readable or writable by group or others (mode %04o)", mode), Hint: "chmod 600 " + text.ShellWord(path)})
	case refuse == forTheGroup && mode&forNobodyElse != 0:
		v.warn("%s: readable or writable by its group (mode %04o)", path, mode)
	case refuse == forNobodyElse && v.layout.isElsewhere(path) && ofAnother(info):
		v.warn("%s: belongs to another user, who can replace it; chown it to the user that runs kthwd", path)
	case refuse == forAll && mode&0o022 != 0:
		v.warn("%s: writable by group or others (mode %04o); chmod go-w %s", path, mode, text.ShellWord(path))
	}
	return data, true
}

// ofAnother reports whether a file belongs neither to this user nor to root. In the data
// directory, whose owner is checked, that does not matter.
func ofAnother(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) != os.Geteuid() && stat.Uid != 0
}

func (v *survey) load(r row) pair {
	var p pair
	var data []byte
	var err error
	l := r.in(v.layout)
	cert, key := l.Cert(r.name), l.Key(r.name)
	if data, p.hasCert = v.read(cert, forAll); data != nil {
		p.chain, p.public, err = r.parse(data)
		v.garbage(cert, err)
	}
	if data, p.hasKey = v.read(key, forNobodyElse); data != nil {
		p.key, err = parseKey(data)
		v.garbage(key, err)
	}
	if r.isCA() {
		p.signerFirst(v.now)
	}
	if r.isCA() && p.key != nil && !p.hasCert {
		p.resume(durable.Hidden(cert))
	}
	return p
}

// parse reads a certificate file as strictly as the programs that use it.
func (r row) parse(data []byte) ([]*x509.Certificate, []crypto.PublicKey, error) {
	if err := checkPEM(data); err != nil {
		return nil, nil, err
	}
	chain, public, err := parseCertificates(data)
	switch {
	case err != nil:
	case len(chain) == 0 && !r.publicOnly:
		err = errors.New("holds a public key and no certificate")
	case r.isCA() && foreignBlock(data) != "":
		// etcd reads each block as a certificate (client/pkg/tlsutil/tlsutil.go:NewCertPool).
		err = fmt.Errorf("holds a block %q; etcd takes nothing but certificates there", foreignBlock(data))
	}
	if err != nil {
		return nil, nil, err
	}
	return chain, public, nil
}

// resume uses the CA certificate that an interrupted Ensure made for this key and has
// not linked.
func (p *pair) resume(path string) {
	data, _, err := read(path)
	if err != nil {
		return
	}
	chain, public, err := parseCertificates(data)
	if err == nil && len(chain) == 1 && chain[0].IsCA && fits(p.key, public[0]) {
		p.chain, p.public, p.staged = chain, public, data
	}
}

func (v *survey) loadConfig(k config) {
	path := k.path(v.layout)
	data, found := v.read(path, forTheGroup)
	if !found && k.server(v.spec) != "" && (k.with == "" || !there(v.config(k.with).path(v.layout))) {
		if v.layout.isElsewhere(path) {
			v.misfit(v.layout.missing(path))
			return
		}
		v.absent[path] = true // checkConfig reports it, after the certificates
	}
	if data == nil {
		return
	}
	a, err := parseKubeconfig(data, filepath.Dir(path))
	if v.garbage(path, err); err == nil {
		v.access[k.name] = &a
	}
}

func (v *survey) garbage(path string, err error) {
	if err != nil {
		v.misfit(&Misfit{File: path, Problem: err.Error(), Hint: "restore it, or move it away"})
	}
}
