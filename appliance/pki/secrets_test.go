package pki

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Where etcd has data, no secret that they depend on is made anew, unless it is named.
func TestNewSecrets(t *testing.T) {
	files := map[string]func(Layout) []string{
		SecretCA: func(l Layout) []string {
			all := []string{l.CA(), l.CAKey()}
			for _, r := range certificates {
				if r.issuer == NameCA && !r.publicOnly {
					all = append(all, l.Cert(r.name), l.Key(r.name))
				}
			}
			for _, k := range kubeconfigs {
				all = append(all, l.Kubeconfig(k.name))
			}
			return append(all, l.Cert(NameServiceAccount)) // its key stays
		},
		SecretServiceAccount: func(l Layout) []string { return []string{l.Cert(NameServiceAccount), l.Key(NameServiceAccount)} },
		SecretEncryption:     func(l Layout) []string { return []string{l.EncryptionConfig()} },
		SecretEtcdCA: func(l Layout) []string { // names.json remembers that there was one
			return []string{l.EtcdCA(), l.EtcdCAKey(), l.Cert(NameEtcd), l.Key(NameEtcd)}
		},
	}
	for _, s := range dataSecrets {
		for _, elsewhere := range []bool{false, true} {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				l, spec := fresh(t), testSpec()
				if err := RecordNames(l); err != nil {
					t.Fatal(err)
				}
				for _, path := range files[s.name](l) {
					os.Remove(path)
				}
				if elsewhere {
					l.EtcdDir = t.TempDir()
				}
				if err := os.MkdirAll(filepath.Join(l.Etcd(), "member", "wal"), 0o700); err != nil {
					t.Fatal(err)
				}
				before := contents(t, l.Dir)
				_, err := Ensure(l, spec)
				wantMisfit(t, l, err, []string{filepath.Base(s.path(l))}, "missing, but there is etcd data in "+l.Etcd())
				if ms := misfits(err); !strings.Contains(ms[0].Hint, "--new-secrets="+s.name) {
					t.Errorf("hint: got %q, want the flag", ms[0].Hint)
				}
				wantSame(t, l.Dir, before)
				for _, other := range dataSecrets {
					if other.name != s.name {
						spec.NewSecrets = []string{other.name}
						_, err := Ensure(l, spec)
						if err == nil || !strings.Contains(err.Error(), other.path(l)+": exists, so no new one is made") {
							t.Errorf("got %v, want a refusal of --new-secrets=%s", err, other.name)
						}
					}
				}
				spec.NewSecrets = []string{s.name}
				wantWarning(t, ensure(t, l, spec), s.path(l)+": newly made, although", s.cost)
				spec.NewSecrets = nil
				ensure(t, l, spec)
			})
		}
	}
}

func TestUnusedSecretIsMade(t *testing.T) {
	l, spec := fresh(t), testSpec()
	os.Remove(l.EncryptionConfig())
	if err := os.MkdirAll(filepath.Join(l.Etcd(), "member", "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	spec.Unused = []string{l.EncryptionConfig()}
	if r := ensure(t, l, spec); len(r.Created) != 1 {
		t.Errorf("made: got %q, want the encryption configuration alone", r.Created)
	}
}
