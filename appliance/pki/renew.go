package pki

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A Renewal is the state of one file with a certificate that kthwd can make anew.
type Renewal struct {
	Name     string    // as Renew takes it; a kubeconfig and the pair beside it share one
	File     string    // full path
	NotAfter time.Time // zero if the file cannot be read
	Due      time.Time // when it is renewed by itself; zero for never
	Until    time.Time // the end of a new one; zero if Cannot says something

	// Cannot is why it cannot be renewed here; "" if it can. It follows the file's name in a
	// sentence. Hint says what to do about it, and may be empty.
	Cannot, Hint string
	Elsewhere    bool // because the key of its CA is not here: Requests and Import renew it
}

// IsDue reports whether the renewal's time has come.
func (r Renewal) IsDue(now time.Time) bool { return !r.Due.IsZero() && !now.Before(r.Due) }

// Failed is the error of a file that was not renewed, and is as it was.
type Failed struct {
	File string
	Err  error // names the file, too
}

func (f *Failed) Error() string { return f.Err.Error() }

// Unwrap returns the cause.
func (f *Failed) Unwrap() error { return f.Err }

const (
	reasonNoKey = "the key of its CA is not here"
	reasonYours = "it is a file of yours, which files: names"

	// clockSlack is how far the clock may be behind the times in the files.
	clockSlack = time.Hour
)

// leafFile is a certificate file, or a kubeconfig that contains one.
type leafFile struct {
	name, path string
	row        row
	config     bool

	data []byte
	mode fs.FileMode
	pair pair // key and chain as they are

	keyPath string // of a certificate that has its key in another file
	keyData []byte
	newKey  crypto.Signer // that takes the place of the old one; nil for that

	problem, hint string // why it cannot be renewed, whatever the signer
}

// Renewals returns the state of every certificate in the directory that kthwd can make
// anew, in the order of the tutorial. It writes nothing. life is that of new certificates;
// 0 means a year. It fails only if the directory cannot be read.
func Renewals(l Layout, life time.Duration, now time.Time) ([]Renewal, error) {
	if _, err := os.ReadDir(l.Dir); err != nil {
		return nil, err
	}
	v := newSurvey(l, Spec{LeafLife: life, Now: func() time.Time { return now }})
	v.loadCAs()
	var all []Renewal
	for _, f := range v.leafFiles() {
		all = append(all, v.state(f))
	}
	return all, nil
}

// state tells when a file is due, and what prevents its renewal.
func (v *survey) state(f leafFile) Renewal {
	r := Renewal{Name: f.name, File: f.path}
	if len(f.pair.chain) > 0 {
		c := f.pair.chain[0]
		r.NotAfter, r.Due = c.NotAfter, f.due()
	}
	r.Cannot, r.Hint = v.cannot(f)
	r.Elsewhere = strings.HasPrefix(r.Cannot, reasonNoKey)
	if r.Cannot == "" {
		r.Until = v.until(f)
		if !r.Due.IsZero() && !r.Until.After(r.NotAfter.Add(time.Second)) {
			if !v.now.Before(r.Due) {
				r.Cannot = fmt.Sprintf("it ends with its CA, on %s", day(r.NotAfter))
				r.Hint = "replace the CA in time, for everything that it has signed ends with it: kthwd pki ca rotate for the cluster's, with --ca=front-proxy or --ca=etcd for those"
			}
		}
	}
	return r
}

// due is when a third of the life is left, of the old certificate or of a new one,
// whichever is less. A part that depends on the certificate keeps controllers from
// renewing at the same time.
func (f leafFile) due() time.Time {
	if !f.row.renewed {
		return time.Time{}
	}
	c := f.pair.chain[0]
	life := min(c.NotAfter.Sub(c.NotBefore), cmp.Or(f.row.life, lifetime))
	var serial [8]byte
	if c.SerialNumber != nil {
		n := c.SerialNumber.Bytes()
		copy(serial[:], n[max(0, len(n)-8):])
	}
	part := time.Duration(float64(life/36) * (float64(binary.BigEndian.Uint64(serial[:])>>1) / (1 << 63)))
	return c.NotAfter.Add(-life/3 - part)
}

// until is the end of a new certificate.
func (v *survey) until(f leafFile) time.Time {
	end := v.now.Add(cmp.Or(f.row.life, lifetime)).UTC().Truncate(time.Second)
	if ca := v.pairs[f.row.issuer].chain[0]; end.After(ca.NotAfter) {
		return ca.NotAfter
	}
	return end
}

// cannot returns why this directory cannot renew the file; "" if it can.
func (v *survey) cannot(f leafFile) (reason, hint string) {
	ca, caFile := v.pairs[f.row.issuer], v.layout.Cert(f.row.issuer)
	if f.problem != "" {
		return f.problem, f.hint
	}
	if doubt := v.clockDoubt(); doubt != "" {
		return doubt, clockHint
	}
	switch {
	case v.layout.isElsewhere(f.path):
		return reasonYours, "renew it by the means that made it; or take it out of files: and copy it to " + v.layout.Dir
	case ca.chain == nil:
		return "its CA is not in " + caFile, ""
	case ca.key == nil:
		return reasonNoKey + ": " + v.layout.Key(f.row.issuer),
			HintElsewhere(f.name)
	case !fits(ca.key, ca.chain[0].PublicKey):
		return v.layout.Key(f.row.issuer) + " is not the key of a CA in " + caFile, "copy the pair that belongs together"
	case !signed(f.pair.chain, ca.chain[:1]) && !(v.moves == f.row.issuer && v.moved(f)):
		return fmt.Sprintf("another CA has signed it than %s is of", filepath.Base(v.layout.Key(f.row.issuer))),
			"clients that verify it may trust the one that has signed it only: issue it there"
	case !current(ca.chain[0], v.now):
		return fmt.Sprintf("its CA is valid from %s to %s, and it is now %s", day(ca.chain[0].NotBefore), day(ca.chain[0].NotAfter), day(v.now)),
			hintExpiredCA
	}
	return "", ""
}

// HintElsewhere says how certificates are renewed whose CA is elsewhere.
func HintElsewhere(names ...string) string {
	return fmt.Sprintf("kthwd pki renew %s --csr-out=DIR, have the requests signed where the key is, then kthwd pki renew --import=FILE", strings.Join(names, " "))
}

const clockHint = "correct this machine's clock, with NTP for example; if it is right, the file has a wrong date: touch it"

// clockDoubt returns why the clock cannot be believed: nothing in the directory can be from
// the future. It returns "" if nothing speaks against the clock.
func (v *survey) clockDoubt() string {
	latest, of := v.now.Add(clockSlack), ""
	for _, name := range (Layout{Dir: v.layout.Dir}).Files() {
		info, err := os.Lstat(filepath.Join(v.layout.Dir, name))
		if err == nil && info.Mode().IsRegular() && info.ModTime().After(latest) {
			latest, of = info.ModTime(), fmt.Sprintf("%s was written on %s", name, day(info.ModTime()))
		}
	}
	for _, r := range v.rows {
		if p := v.pairs[r.name]; r.isCA() && len(p.chain) > 0 && p.chain[0].NotBefore.After(latest) {
			latest, of = p.chain[0].NotBefore, fmt.Sprintf("%s.pem is valid from %s on", r.name, day(p.chain[0].NotBefore))
		}
	}
	if of == "" {
		return ""
	}
	return fmt.Sprintf("this machine's clock says %s, but %s", day(v.now), of)
}

func (v *survey) loadCAs() {
	for _, r := range v.rows {
		if r.isCA() {
			v.pairs[r.name] = v.load(r)
		}
	}
}

// leafFiles reads every file with a leaf of the tables. Those that are missing are left out.
func (v *survey) leafFiles() (all []leafFile) {
	for _, r := range v.rows {
		if r.isCA() || r.publicOnly {
			continue
		}
		if f, ok := v.readLeaf(r); ok {
			all = append(all, f)
		}
	}
	for _, k := range v.configs {
		if f, ok := v.readLeafConfig(k); ok {
			all = append(all, f)
		}
	}
	return all
}

// readLeaf reads a certificate file with its key. It is left out where the certificate is
// missing, which Ensure makes.
func (v *survey) readLeaf(r row) (leafFile, bool) {
	f := leafFile{name: r.name, path: v.layout.Cert(r.name), row: r}
	if !f.read() {
		return f, false
	}
	if f.problem != "" {
		return f, true
	}
	if HoldsPrivateKey(f.data) {
		return f.unfit("holds a private key beside the certificate", "move the key to a file of its own"), true
	}
	var err error
	if f.pair.chain, f.pair.public, err = r.parse(f.data); err != nil {
		f.pair.chain = nil
		return f.unfit(err.Error(), "restore it from "+v.layout.Kept()+" or a backup, or move it and its key away and kthwd makes new ones"), true
	}
	data, _, err := read(v.layout.Key(r.name))
	if errors.Is(err, fs.ErrNotExist) {
		return f.unfit("its key is missing: "+v.layout.Key(r.name), "copy the key from the origin of the certificate"), true
	}
	f.keyPath, f.keyData = v.layout.Key(r.name), data
	if err == nil {
		f.pair.key, err = parseKey(data)
	}
	switch {
	case err != nil:
		return f.unfit(v.layout.Key(r.name)+": "+problem(v.layout.Key(r.name), err), ""), true
	case !fits(f.pair.key, f.pair.public[0]):
		return f.unfit("is not the certificate of "+v.layout.Key(r.name), "the two come from different runs: copy the pair that belongs together"), true
	}
	return f, true
}

// readLeafConfig reads a kubeconfig.
func (v *survey) readLeafConfig(k config) (leafFile, bool) {
	f := leafFile{name: k.cert, path: k.path(v.layout), row: v.row(k.cert), config: true}
	if !f.read() {
		return f, false
	}
	if f.problem != "" {
		return f, true
	}
	a, err := parseKubeconfig(f.data, filepath.Dir(f.path))
	if err != nil {
		return f.unfit(err.Error(), "restore it from "+v.layout.Kept()+" or a backup, or move it away and kthwd makes a new one"), true
	}
	f.pair = a.client
	switch embedded, err := embeddedCertificate(f.data); {
	case err != nil || embedded == "":
		return f.unfit("its client certificate is in another file", "renew that file"), true
	case !bytes.Contains(f.data, []byte(embedded)):
		return f.unfit("its client certificate is spread over several lines", "write it on one line, as kubectl config does"), true
	case !fits(f.pair.key, f.pair.public[0]):
		return f.unfit("its client key is not the key of its client certificate", ""), true
	}
	return f, true
}

// read reads the file; it reports false if there is none.
func (f *leafFile) read() bool {
	if info, err := os.Lstat(f.path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		*f = f.unfit("is a symbolic link, which a renewal would replace by a file", "renew the file that it points to")
		if data, _, err := read(f.path); err == nil && !f.config {
			f.pair.chain, f.pair.public, _ = parseCertificates(data)
		}
		return true
	}
	data, info, err := read(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		*f = f.unfit(problem(f.path, err), "")
		return true
	}
	f.data, f.mode = data, info.Mode().Perm()
	return true
}

func (f leafFile) unfit(problem, hint string) leafFile {
	f.problem, f.hint = problem, hint
	return f
}

// embeddedCertificate returns the client certificate of the current context as the
// kubeconfig has it, in base64; "" if it names a file.
func embeddedCertificate(data []byte) (string, error) {
	var f kubeconfigFile
	if err := decodeYAML(data, &f); err != nil {
		return "", err
	}
	_, user, err := f.current()
	return user.User.CertData, err
}

// with returns the content of the file with another certificate, followed by those between
// it and its CA.
func (f leafFile) with(chain ...*x509.Certificate) ([]byte, error) {
	if !f.config {
		return encodeCertificates(chain), nil
	}
	old, err := embeddedCertificate(f.data)
	if err != nil {
		return nil, err
	}
	data, err := replaced(f.data, old, base64.StdEncoding.EncodeToString(encodeCertificates(chain)))
	if err == nil && f.newKey != nil {
		data, err = f.withKey(data)
	}
	if err != nil {
		return nil, err
	}
	a, err := parseKubeconfig(data, filepath.Dir(f.path))
	if err == nil && (!a.client.chain[0].Equal(chain[0]) || !fits(a.client.key, chain[0].PublicKey)) {
		err = errors.New("the new certificate would not be the one in use")
	}
	return data, err
}

// replaced replaces a value of a kubeconfig, which is on one line there.
func replaced(data []byte, old, value string) ([]byte, error) {
	if old == "" || !bytes.Contains(data, []byte(old)) {
		return nil, errors.New("its client certificate or key is in another file, or spread over several lines")
	}
	return bytes.ReplaceAll(data, []byte(old), []byte(value)), nil
}

// RenewalNames lists the names that Renew takes, in the order of the tutorial.
func RenewalNames() (names []string) {
	for _, r := range certificates {
		if !r.isCA() && !r.publicOnly {
			names = append(names, r.name)
		}
	}
	return names
}

// Renewable reports whether a file of this name has a certificate that Renew renews by its
// own name.
func Renewable(file string) bool {
	name := strings.TrimSuffix(strings.TrimSuffix(file, ".pem"), ".kubeconfig")
	return name != file && slices.Contains(RenewalNames(), name)
}

// checkRenewalNames refuses names that no certificate has.
func checkRenewalNames(names []string) error {
	for _, name := range names {
		if !slices.Contains(RenewalNames(), name) {
			return fmt.Errorf("%q is no certificate that kthwd renews; want some of %s", name, strings.Join(RenewalNames(), ", "))
		}
	}
	return nil
}
