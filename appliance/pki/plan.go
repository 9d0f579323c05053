package pki

import (
	"errors"
	"maps"
	"syscall"
)

// A Plan is what Ensure would do with a directory. Making one writes nothing.
type Plan struct {
	Report Report

	files  map[string][]byte
	signer []byte
}

// NewPlan reads what Ensure would read, and makes in memory what it would make. The error
// joins one *Misfit for each problem. Ensure makes its files anew, with other keys: it
// looks again under the lock, and the files may have changed meanwhile.
func NewPlan(l Layout, s Spec) (*Plan, error) {
	there := isDir(l.Dir)
	p, err := newPlan(l, s)
	if err != nil && !there && isDir(l.Dir) { // an Ensure has made it meanwhile, and a half of its files
		return newPlan(l, s)
	}
	return p, err
}

func newPlan(l Layout, s Spec) (*Plan, error) {
	if isDir(l.Dir) {
		held, err := lock(l.Dir, syscall.LOCK_SH)
		if err != nil {
			return nil, err
		}
		defer held.Close()
	}
	v := newSurvey(l, s)
	v.run()
	if err := errors.Join(v.problems...); err != nil {
		return &Plan{Report: v.report}, err
	}
	files, err := v.files()
	if err != nil {
		return nil, err
	}
	p := &Plan{Report: v.report, files: map[string][]byte{}, signer: v.pairs[NameCA].signer()}
	for _, f := range files {
		p.files[f.path] = f.data
	}
	return p, nil
}

// Files returns the files that Ensure would make, by path.
func (p *Plan) Files() map[string][]byte { return maps.Clone(p.files) }

// Signer returns the certificate that belongs to the CA's key, as PEM; nil if the key is
// kept elsewhere.
func (p *Plan) Signer() []byte { return p.signer }

// signer returns the first certificate of a CA with its key: see trust.
func (p pair) signer() []byte {
	if p.key == nil || len(p.chain) == 0 {
		return nil
	}
	return encodeCertificates(p.chain[:1])
}

// SignerFile is the name of the file that Signer wants in the run directory.
const SignerFile = "ca-signing.pem"

// Signer returns the file with the certificate that belongs to the CA's key: ca.pem, if it
// is the only one in there. Otherwise path is "", and data is the content of a file to
// make. Both are empty if the key is kept elsewhere.
func Signer(l Layout) (path string, data []byte, err error) {
	v := newSurvey(l, Spec{})
	ca := v.load(v.row(NameCA))
	if err := errors.Join(v.problems...); err != nil || ca.key == nil {
		return "", nil, err
	}
	if len(ca.chain) == 1 {
		return l.CA(), nil, nil
	}
	return "", ca.signer(), nil
}
