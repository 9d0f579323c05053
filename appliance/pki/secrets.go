package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// The secrets that etcd's data or the cluster's clients depend on, for Spec.NewSecrets.
const (
	SecretCA             = NameCA
	SecretServiceAccount = NameServiceAccount
	SecretEncryption     = "encryption-config"
	SecretEtcdCA         = NameEtcdCA
)

// A secret is a file that must not be made anew beside data that an older one has
// shaped. The front proxy's CA is not among them: the API server itself publishes it,
// so a new one shuts nobody out.
type secret struct {
	name string              // in Spec.NewSecrets
	path func(Layout) string // absent only if kthwd must make the secret
	cost string              // the consequence of a new one
}

var dataSecrets = []secret{
	{SecretCA, Layout.CAKey, "earlier nodes and kubeconfigs will not be trusted"},
	{SecretServiceAccount, func(l Layout) string { return l.Key(NameServiceAccount) }, "tokens signed with another key will be refused"},
	{SecretEncryption, Layout.EncryptionConfig, "secrets encrypted with another key cannot be read"},
	{SecretEtcdCA, Layout.EtcdCAKey, "the etcd members of other controllers and this one will not trust each other"},
}

// SecretNames lists the names that Spec.NewSecrets accepts.
func SecretNames() (names []string) {
	for _, s := range dataSecrets {
		names = append(names, s.name)
	}
	return names
}

// checkNewSecretNames refuses an unknown name in Spec.NewSecrets.
func (s Spec) checkNewSecretNames() error {
	for _, name := range s.NewSecrets {
		if !slices.Contains(SecretNames(), name) {
			return fmt.Errorf("%q is no secret that can be made anew; want one of %s", name, strings.Join(SecretNames(), ", "))
		}
	}
	return nil
}

// HasData reports whether etcd's directory contains data of a member. An unreadable one counts
// as data.
func (l Layout) HasData() bool {
	for _, name := range []string{filepath.Join("snap", "db"), "wal"} {
		_, err := os.Lstat(filepath.Join(l.Etcd(), "member", name))
		if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return true
		}
	}
	return false
}

// checkSecrets refuses to make a secret beside existing data, unless the Spec says that a
// new one is meant. The consequence of a lost file would otherwise show only later, in
// data that can no longer be read.
func (v *survey) checkSecrets() {
	data := v.layout.HasData()
	for _, s := range dataSecrets {
		path, meant := s.path(v.layout), slices.Contains(v.spec.NewSecrets, s.name)
		switch {
		case meant && s.name == SecretEtcdCA && StageOf(v.layout) == StageShared:
			v.misfit(&Misfit{File: v.layout.EtcdCA(), Problem: "etcd uses the cluster's CA in this directory, so no CA of its own is made", Hint: "kthwd pki split-etcd-ca moves the running cluster to one"})
		case meant && !v.absent[path]:
			v.misfit(&Misfit{File: path, Problem: "exists, so no new one is made", Hint: "move the old files away first, and keep them"})
		case !data || !v.absent[path] || slices.Contains(v.spec.Unused, path):
		case meant:
			v.newSecrets = append(v.newSecrets, s)
		default:
			v.misfit(&Misfit{File: path, Problem: "missing, but there is etcd data in " + v.layout.Etcd() + ": with a new one " + s.cost,
				Hint: fmt.Sprintf("bring %s back, from a backup or another controller; if a new one is meant, run kthwd pki init --data-dir=%s --new-secrets=%s with this start's other flags",
					s.files(v.layout), v.layout.Dir, s.name)})
		}
	}
}

// files names the files of the secret.
func (s secret) files(l Layout) string {
	key := filepath.Base(s.path(l))
	if cert, isKey := strings.CutSuffix(key, "-key.pem"); isKey {
		return cert + ".pem and " + key
	}
	return key
}

// warnOfNewSecrets states the consequence of the new secrets that were meant.
func (v *survey) warnOfNewSecrets() {
	for _, s := range v.newSecrets {
		v.warn("%s: newly made, although there is etcd data in %s: %s", s.path(v.layout), v.layout.Etcd(), s.cost)
	}
}
