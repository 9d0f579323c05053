package pki

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// User is a person or a program to whom IssueUser gives a certificate.
type User struct {
	Name   string
	Groups []string
	Life   time.Duration
	From   time.Time // the certificate does not begin before it; zero for none
	Server string    // the URL of the API server
}

// UserKubeconfig is a kubeconfig with a certificate and its key in it.
type UserKubeconfig struct {
	Data []byte
	Cert *x509.Certificate
}

// ShortestUserLife is the least that a User may have.
const ShortestUserLife = time.Minute

// maxUserName is the longest common name that X.509 allows (RFC 5280, ub-common-name).
const maxUserName = 64

// Check reports what is wrong with a User, whatever the CA is.
func (u User) Check() error {
	errs := []error{checkUserName("user", u.Name)}
	switch {
	case strings.HasPrefix(u.Name, "system:"):
		errs = append(errs, fmt.Errorf("user %q: names that begin with system: are Kubernetes' own", u.Name))
	case u.Name == NameAdmin || u.Name == NameSuperAdmin || slices.Contains(ProgramUsers(), u.Name):
		errs = append(errs, fmt.Errorf("user %q: is the name in a certificate of the control plane itself", u.Name))
	}
	for _, g := range u.Groups {
		errs = append(errs, checkUserName("group", g))
		switch {
		case g == "system:masters":
			errs = append(errs, fmt.Errorf("group %q: only super-admin.kubeconfig is in it, which is for an emergency", g))
		case strings.HasPrefix(g, "system:"):
			errs = append(errs, fmt.Errorf("group %q: groups that begin with system: are Kubernetes' own", g))
		}
	}
	if u.Life < ShortestUserLife {
		errs = append(errs, fmt.Errorf("--expires %v is too short: want %v at least", u.Life, ShortestUserLife))
	}
	return errors.Join(errs...)
}

func checkUserName(what, name string) error {
	switch {
	case name == "", strings.TrimSpace(name) != name:
		return fmt.Errorf("%s %q: want a name without spaces around it", what, name)
	case len(name) > maxUserName:
		return fmt.Errorf("%s %q: has %d bytes; a certificate allows %d", what, name, len(name), maxUserName)
	case strings.ContainsFunc(name, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) }):
		return fmt.Errorf("%s %q: want characters that can be printed", what, name)
	}
	return nil
}

// ProgramUsers are the common names of the certificates with which programs of the control plane
// work; admin and super-admin are people's.
func ProgramUsers() (all []string) {
	for _, r := range certificates {
		if r.name != NameAdmin && r.name != NameSuperAdmin {
			all = append(all, r.cn)
		}
	}
	return unique(all)
}

// fileName is a user's name that can be the name of a file.
var fileName = regexp.MustCompile(`^[A-Za-z0-9_@+=,-][A-Za-z0-9_.@+=,-]*$`)

// KubeconfigName is the file of a user's kubeconfig; "" where the name cannot be a file's.
func (u User) KubeconfigName() string {
	if !fileName.MatchString(u.Name) {
		return ""
	}
	return u.Name + ".kubeconfig"
}

// IssueUser makes a kubeconfig for a user, with a new key. It writes nothing. Without the key of
// the CA it fails with ErrNoCAKey.
func IssueUser(l Layout, u User) (UserKubeconfig, error) {
	if err := u.Check(); err != nil {
		return UserKubeconfig{}, err
	}
	held, err := lock(l.Dir, syscall.LOCK_SH)
	if err != nil {
		return UserKubeconfig{}, err
	}
	defer held.Close()
	v := newSurvey(l, Spec{Server: u.Server})
	ca := v.load(v.row(NameCA))
	switch {
	case len(v.problems) > 0:
		return UserKubeconfig{}, errors.Join(v.problems...)
	case ca.chain == nil || ca.key == nil:
		return UserKubeconfig{}, fmt.Errorf("%s: %w", v.layout.Key(NameCA), ErrNoCAKey)
	}
	if end := ca.chain[0].NotAfter; v.now.Add(u.Life).After(end) {
		return UserKubeconfig{}, &Misfit{File: v.layout.Cert(NameCA),
			Problem: fmt.Sprintf("ends on %s, before --expires=%v", end.UTC().Format(time.RFC3339), u.Life), Hint: "want a shorter --expires"}
	}
	key, err := newKey()
	if err != nil {
		return UserKubeconfig{}, err
	}
	r := row{name: u.Name, cn: u.Name, issuer: NameCA, uses: client, life: u.Life}
	template, err := r.template(nil, key.Public(), v.now)
	if err != nil {
		return UserKubeconfig{}, err
	}
	template.Subject = pkix.Name{CommonName: u.Name, Organization: u.Groups}
	if template.NotBefore.Before(u.From) {
		template.NotBefore = u.From
	}
	within(template, ca.chain[0])
	der, err := x509.CreateCertificate(rand.Reader, template, ca.chain[0], key.Public(), ca.key)
	if err != nil {
		return UserKubeconfig{}, fmt.Errorf("sign with %s: %w", v.layout.Key(NameCA), err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return UserKubeconfig{}, err
	}
	data, err := renderKubeconfig(v.spec, u.Server, ca, pair{chain: []*x509.Certificate{cert}, key: key})
	return UserKubeconfig{Data: data, Cert: cert}, err
}

// EndOfCA returns the end of the last CA whose certificates the API server accepts.
func EndOfCA(l Layout) (end time.Time, err error) {
	data, _, err := read(l.CA())
	if err != nil {
		return end, err
	}
	chain, _, err := parseCertificates(data)
	if err != nil {
		return end, fmt.Errorf("%s: %w", l.CA(), err)
	}
	for _, c := range chain {
		if c.NotAfter.After(end) {
			end = c.NotAfter
		}
	}
	return end, nil
}

// CertificateIn returns the certificate of a kubeconfig's user.
func CertificateIn(kubeconfig string) (*x509.Certificate, error) {
	data, _, err := read(kubeconfig)
	if err != nil {
		return nil, err
	}
	a, err := parseKubeconfig(data, filepath.Dir(kubeconfig))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kubeconfig, err)
	}
	return a.client.chain[0], nil
}
