package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"kthwd/appliance/durable"
)

// Shared holds the files that a further controller needs from an existing one: all
// but kubernetes.pem, etcd.pem and their keys, which name the machine.
type Shared struct {
	Files map[string][]byte // by file name
	Admin string            // the server of admin.kubeconfig; "" means each controller's own
}

// Share reads the shared files from l. own lists the URLs of that controller's API
// server. The keys of the cluster's CA and etcd's are included only with caKey. Missing files are left out.
func Share(l Layout, own []string, caKey bool) (Shared, error) {
	s := Shared{Files: map[string][]byte{}}
	var problems []error
	add := func(name string) {
		path := l.path(name)
		data, _, err := read(path)
		switch {
		case err == nil:
			s.Files[name] = data
		case !errors.Is(err, fs.ErrNotExist):
			problems = append(problems, err)
		}
	}
	for _, r := range certificates {
		if r.configOnly || r.ownEach() {
			continue
		}
		add(Layout{}.Cert(r.name))
		if !r.isCA() || r.signsControllers() && caKey {
			add(Layout{}.Key(r.name))
		}
	}
	for _, d := range documents {
		add(d.path(Layout{}))
	}
	for _, name := range machineConfigs {
		data, a, err := embedded(l.Kubeconfig(name))
		if err != nil {
			problems = append(problems, err)
			continue
		}
		s.Files[name+".kubeconfig"] = data
		if name == NameAdmin && !slices.Contains(own, a.server) {
			s.Admin = a.server
		}
	}
	return s, errors.Join(append(problems, s.prolong(l, caKey))...)
}

// prolong gives the shared certificates a long life where the further controller cannot renew
// them, as far as the keys for that are here. Without them they have a long life already.
func (s Shared) prolong(l Layout, caKey bool) error {
	v := newSurvey(l, Spec{})
	longLived(v.rows, func(row) bool { return true })
	v.loadCAs()
	for _, f := range v.leafFiles() {
		_, shared := s.Files[filepath.Base(f.path)]
		issuer := v.row(f.row.issuer)
		if !shared || f.name == NameAdmin || issuer.signsControllers() && caKey {
			continue
		}
		if reason, _ := v.cannot(f); reason != "" || f.pair.chain[0].NotAfter.Sub(f.pair.chain[0].NotBefore) > 2*leafLife {
			continue
		}
		cert, err := v.again(f)
		if err != nil {
			return err
		}
		if !f.config {
			s.Files[filepath.Base(f.path)] = encodeCertificates([]*x509.Certificate{cert})
			continue
		}
		f.data = s.Files[filepath.Base(f.path)]
		data, err := f.with(cert)
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		s.Files[filepath.Base(f.path)] = data
	}
	return errors.Join(v.problems...)
}

// machineConfigs lists the kubeconfigs that each controller has.
var machineConfigs = []string{NameAdmin, NameControllerManager, NameScheduler}

// embedded returns a kubeconfig with the content of all files that it names.
func embedded(path string) ([]byte, access, error) {
	data, _, err := read(path)
	if err != nil {
		return nil, access{}, fmt.Errorf("%s: %w", path, err)
	}
	a, err := parseKubeconfig(data, filepath.Dir(path))
	if err == nil {
		data, err = renderKubeconfig(Spec{}, a.server, pair{chain: a.cas}, a.client)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return data, a, err
}

// Adopt writes the files of s that l lacks, for the API server at server, and keeps
// existing ones. A key that all controllers must share has to be identical; Check
// judges the others. The error joins all that differ, and then Adopt writes nothing.
func (s Shared) Adopt(l Layout, server string) (Report, error) {
	if err := makeDir(l.Dir); err != nil {
		return Report{}, err
	}
	held, err := lock(l.Dir, syscall.LOCK_EX)
	if err != nil {
		return Report{}, err
	}
	defer held.Close()
	report, files, err := s.plan(l, server)
	if err != nil || len(files) == 0 {
		return report, err
	}
	if err := write(l.Dir, files); err != nil {
		return report, err
	}
	for _, f := range files {
		report.Created = append(report.Created, f.path)
	}
	return report, nil
}

func (s Shared) plan(l Layout, server string) (report Report, files []file, err error) {
	var problems []error
	for _, name := range s.order() {
		path := l.path(name)
		there, _, err := read(path)
		switch {
		case err == nil:
			report.Kept = append(report.Kept, path)
			if mustBeShared(name) && !bytes.Equal(there, s.Files[name]) {
				problems = append(problems, &Misfit{File: path, Problem: "is not that of the cluster",
					Hint: "move it away, and kthwd fetches the cluster's"})
			}
			continue
		case !errors.Is(err, fs.ErrNotExist):
			problems = append(problems, err)
			continue
		case l.isElsewhere(path):
			problems = append(problems, l.missing(path))
			continue
		}
		data, err := s.content(name, server)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s, as the cluster has it: %w", name, err))
			continue
		}
		mode := modeSecret
		if strings.HasSuffix(name, ".pem") && !strings.HasSuffix(name, "-key.pem") || l.isPublicDocument(path) {
			mode = modePublic
		}
		files = append(files, file{path: path, data: data, mode: mode, isKey: strings.HasSuffix(name, "-key.pem")})
	}
	return report, files, errors.Join(problems...)
}

// FinishCertificate reports whether the certificate of that name exists, where the CA's
// key that issued it does not. An Adopt that was interrupted after it had linked the
// key left the certificate under its hidden name: FinishCertificate links it, because
// a new certificate would not fit the key. The directory must exist.
func FinishCertificate(l Layout, name string) (there bool, err error) {
	held, err := lock(l.Dir, syscall.LOCK_EX)
	if err != nil {
		return false, err
	}
	defer held.Close()
	return finishCertificate(l, name)
}

func finishCertificate(l Layout, name string) (bool, error) {
	cert := l.Cert(name)
	if there(cert) {
		return true, nil
	}
	keyData, _, err := read(l.Key(name))
	if err != nil {
		return false, notThere(err)
	}
	certData, _, err := read(durable.Hidden(cert))
	if err != nil {
		return false, notThere(err)
	}
	key, errKey := parseKey(keyData)
	_, public, errCert := parseCertificates(certData)
	if errors.Join(errKey, errCert) != nil || len(public) == 0 || !fits(key, public[0]) {
		return false, nil
	}
	if err := link([]file{{path: cert}}, false); err != nil {
		return false, err
	}
	return true, durable.Sync(l.Dir)
}

// notThere turns the error of a missing file into nil.
func notThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// content returns a file as this machine needs it.
func (s Shared) content(name, server string) ([]byte, error) {
	config, isConfig := strings.CutSuffix(name, ".kubeconfig")
	if !isConfig {
		return s.Files[name], nil
	}
	a, err := parseKubeconfig(s.Files[name], "")
	if err != nil {
		return nil, err
	}
	if config == NameAdmin && s.Admin != "" {
		server = s.Admin
	}
	return renderKubeconfig(Spec{}, server, pair{chain: a.cas}, a.client)
}

// order lists the names in s that kthwd knows, and ignores any other that was sent.
func (s Shared) order() (names []string) {
	add := func(name string) {
		if _, ok := s.Files[name]; ok {
			names = append(names, name)
		}
	}
	for _, r := range certificates {
		add(r.name + ".pem")
		add(r.name + "-key.pem")
	}
	for _, name := range machineConfigs {
		add(name + ".kubeconfig")
	}
	for _, d := range documents {
		add(filepath.Base(d.path(Layout{})))
	}
	return names
}

// mustBeShared reports whether controllers with different versions of the file would
// harm each other.
func mustBeShared(name string) bool {
	l := Layout{}
	return slices.Contains([]string{
		l.CA(), l.CAKey(), l.Cert(NameServiceAccount), l.Key(NameServiceAccount), l.Cert(NameFrontProxyCA), l.EncryptionConfig(),
		l.EtcdCA(), l.EtcdCAKey(),
	}, name)
}

// Alone writes the files of s into dir, or nothing if one of them exists.
func (s Shared) Alone(dir string) (Report, error) {
	var problems []error
	for name := range s.Files {
		if path := filepath.Join(dir, name); there(path) {
			problems = append(problems, &Misfit{File: path, Problem: "already exists, and kthwd replaces no file", Hint: "move it away, or name another directory"})
		}
	}
	if len(problems) > 0 {
		return Report{}, errors.Join(problems...)
	}
	return s.Adopt(Layout{Dir: dir}, "")
}

// ErrNoCAKey means that no certificate can be issued here.
var ErrNoCAKey = errors.New("the key of the CA is not here")

// IssueController makes certificates and their keys for a further controller: those of
// names, which are NameKubernetes or NameEtcd. Each has the names in the certificate of l
// and addresses. It leaves out NameEtcd where etcd has no CA of its own, and writes
// nothing. Without the key of a CA it fails with ErrNoCAKey.
func IssueController(l Layout, addresses []string, names ...string) (Shared, error) {
	held, err := lock(l.Dir, syscall.LOCK_SH)
	if err != nil {
		return Shared{}, err
	}
	defer held.Close()
	s, v := Shared{Files: map[string][]byte{}}, newSurvey(l, Spec{})
	longLived(v.rows, func(row) bool { return true }) // they go to another machine, which may lack the keys
	for _, r := range v.rows {
		if r.ownEach() && slices.Contains(names, r.name) {
			if err := v.issueLike(r, addresses, s.Files); err != nil {
				return Shared{}, err
			}
		}
	}
	return s, nil
}

// issueLike makes a pair like the one of l, for another machine.
func (v *survey) issueLike(r row, addresses []string, files map[string][]byte) error {
	ca, own, issuer := v.load(v.row(r.issuer)), v.load(r), v.row(r.issuer)
	if own.chain == nil { // the directory of a CA that has issued none yet
		own = v.load(v.row(NameKubernetes))
	}
	switch {
	case len(v.problems) > 0:
		return errors.Join(v.problems...)
	case ca.key == nil || ca.chain == nil:
		return fmt.Errorf("%s: %w", v.layout.Key(issuer.name), ErrNoCAKey)
	case own.chain == nil:
		return &Misfit{File: v.layout.Cert(r.name), Problem: "is missing: a further controller's certificate needs its names"}
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	cert, err := issue(r, unique(slices.Concat(addresses, sans(own.chain[0]))), key, ca, v.now)
	if err != nil {
		return err
	}
	keyData, err := encodeKey(key)
	if err != nil {
		return err
	}
	files[r.name+".pem"], files[r.name+"-key.pem"] = encodeCertificates([]*x509.Certificate{cert}), keyData
	return nil
}

// Pin returns the SHA-256 of the CA's certificate, by which a joiner recognises the
// cluster, and that certificate.
func Pin(l Layout) (pin [sha256.Size]byte, der []byte, err error) {
	data, _, err := read(l.CA())
	if err != nil {
		return pin, nil, fmt.Errorf("%s: %w", l.CA(), err)
	}
	chain, _, err := parseCertificates(data)
	if err != nil || len(chain) == 0 {
		return pin, nil, fmt.Errorf("%s: holds no certificate", l.CA())
	}
	ca := chain[0]
	if leaf, err := leafOf(l.Cert(NameKubernetes)); err == nil && len(chain) > 1 { // the joiner verifies this certificate with it
		for _, c := range chain {
			if signed([]*x509.Certificate{leaf}, []*x509.Certificate{c}) {
				ca = c
			}
		}
	}
	return sha256.Sum256(ca.Raw), ca.Raw, nil
}
