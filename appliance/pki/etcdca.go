package pki

import (
	"encoding/json"
	"slices"
)

// A Stage is how far the controller of a data directory has moved from the cluster's CA to
// a CA of etcd's own. The files alone decide it, so that no crash between two of them
// leaves a directory in which kthwd cannot start.
type Stage int

const (
	// StageShared means that etcd trusts the cluster's CA and shows kubernetes.pem, as in the
	// guide and as with kthwd before 0.2.
	StageShared Stage = iota
	// StageTrust means that etcd-ca.pem holds both CAs; etcd still shows kubernetes.pem.
	StageTrust
	// StageUse means that etcd shows etcd.pem, and still trusts both CAs.
	StageUse
	// StageOwn means that etcd trusts etcd-ca.pem, which holds its own CA only. A new
	// directory begins here.
	StageOwn
)

// String says what etcd trusts and shows at that stage.
func (s Stage) String() string {
	switch s {
	case StageShared:
		return "trusts the cluster's CA and shows a certificate of it"
	case StageTrust:
		return "trusts both CAs and shows a certificate of the cluster's"
	case StageUse:
		return "trusts both CAs and shows a certificate of its own"
	}
	return "trusts its own CA and shows a certificate of it"
}

// EtcdFiles are the files with which etcd's two ports, and the controllers as their
// clients, verify each other.
type EtcdFiles struct{ CA, Cert, Key string }

// Files returns the files that etcd uses in a directory at that stage.
func (s Stage) Files(l Layout) EtcdFiles {
	f := EtcdFiles{CA: l.EtcdCA(), Cert: l.Cert(NameEtcd), Key: l.Key(NameEtcd)}
	if s == StageShared {
		f.CA = l.CA()
	}
	if s < StageUse {
		f.Cert, f.Key = l.Cert(NameKubernetes), l.Key(NameKubernetes)
	}
	return f
}

// StageOf reads the stage of a directory. One without a CA is new: its first start makes
// etcd's own, too.
func StageOf(l Layout) Stage {
	switch {
	case !there(l.CA()):
		return StageOwn
	// The key of the CA alone is what an interrupted move has left; of an interrupted
	// Ensure there is etcd's own key as well, which is linked before any certificate.
	case !there(l.EtcdCA()) && !there(l.Cert(NameEtcd)) && !there(l.Key(NameEtcd)) && !recorded(l, NameEtcd):
		return StageShared
	}
	both, err := SharesCA(l.EtcdCA(), l.CA())
	switch {
	case err != nil || !both:
		return StageOwn
	case there(l.Cert(NameEtcd)):
		return StageUse
	}
	return StageTrust
}

// recorded reports whether the directory once had the certificate: see RecordNames. It
// keeps a directory that has lost all of etcd's files from going back to the cluster's CA.
func recorded(l Layout, name string) bool {
	record := map[string][]string{}
	data, _, err := read(l.Names())
	if err != nil || json.Unmarshal(data, &record) != nil {
		return false
	}
	_, is := record[name]
	return is
}

// rowsOf returns the certificates that belong into a directory.
func rowsOf(l Layout) []row {
	stage := StageOf(l)
	return slices.DeleteFunc(slices.Clone(certificates), func(r row) bool {
		return r.name == NameEtcdCA && stage == StageShared || r.name == NameEtcd && stage < StageUse
	})
}
