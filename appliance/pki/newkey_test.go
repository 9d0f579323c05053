package pki

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/durable"
)

// keptKeys are the contents of the old keys of that name.
func keptKeys(t *testing.T, l Layout, name string) (all []string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(l.KeptCertificates(), name+"-key.pem.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v, %v", path, info.Mode(), err)
		}
		all = append(all, get(t, path))
	}
	return all
}

// A renewal with another key changes key and certificate, keeps both old files, and touches no
// other key. A kubeconfig and the pair beside it share the new one.
func TestRenewNewKey(t *testing.T) {
	l := young(t)
	before := contents(t, l.Dir)
	old := get(t, l.Key(NameFrontProxyClient))
	done, err := Renew(l, RenewOptions{Names: []string{NameFrontProxyClient, NameScheduler}, NewKey: true})
	if err != nil || len(done) != 3 {
		t.Fatalf("Renew = %+v, %v", done, err)
	}
	for _, d := range done {
		if !d.NewKey {
			t.Errorf("%s: without another key", d.File)
		}
	}
	changed := map[string]bool{
		"front-proxy-client.pem": true, "front-proxy-client-key.pem": true, "kube-scheduler.pem": true, "kube-scheduler-key.pem": true, "kube-scheduler.kubeconfig": true,
	}
	after := contents(t, l.Dir)
	for name, was := range before {
		if (after[name] != was) != changed[name] {
			t.Errorf("%s: changed is %v", name, after[name] != was)
		}
	}
	for _, name := range []string{NameFrontProxyClient, NameScheduler} {
		if p := loadPair(t, l, name); !fits(p.key, p.public[0]) {
			t.Errorf("%s does not fit its key", name)
		}
		if info, err := os.Stat(l.Key(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v, %v", l.Key(name), info.Mode(), err)
		}
	}
	if kept := keptKeys(t, l, NameFrontProxyClient); len(kept) != 1 || kept[0] != old {
		t.Errorf("kept %d keys, want the old one", len(kept))
	}
	a, err := parseKubeconfig([]byte(get(t, l.Kubeconfig(NameScheduler))), "")
	if err != nil || !fits(a.client.key, loadPair(t, l, NameScheduler).public[0]) {
		t.Errorf("the kubeconfig has another key than the pair beside it, %v", err)
	}
	s := testSpec()
	s.Now = nil
	ensure(t, l, s)

	if err := os.Rename(l.Key(NameEtcd), l.Key(NameEtcd)+".real"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Base(l.Key(NameEtcd))+".real", l.Key(NameEtcd)); err != nil {
		t.Fatal(err)
	}
	cert := get(t, l.Cert(NameEtcd))
	if _, err := Renew(l, RenewOptions{Names: []string{NameEtcd}, NewKey: true}); err == nil || !strings.Contains(err.Error(), "its key is a symbolic link") || get(t, l.Cert(NameEtcd)) != cert {
		t.Errorf("with a link in place of the key: Renew = %v", err)
	}
}

// A crash between a new key and its certificate leaves the certificate under its hidden name: the
// next start or renewal gives it its own. A hidden file that does not fit is no certificate.
func TestNewKeyCrash(t *testing.T) {
	for name, next := range map[string]func(Layout) error{
		"a start": func(l Layout) error {
			s := testSpec()
			s.Now = nil
			_, err := Ensure(l, s)
			return err
		},
		"a renewal": func(l Layout) error {
			_, err := Renew(l, RenewOptions{Due: true})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := young(t)
			cert := l.Cert(NameKubernetes)
			old, oldKey := get(t, cert), get(t, l.Key(NameKubernetes))
			if _, err := Renew(l, RenewOptions{Names: []string{NameKubernetes}, NewKey: true}); err != nil {
				t.Fatal(err)
			}
			now := get(t, cert)
			put(t, cert, old)
			put(t, durable.Hidden(cert), now)
			if err := next(l); err != nil || get(t, cert) != now {
				t.Errorf("after the crash: %v; the certificate is the new one: %v", err, get(t, cert) == now)
			}

			put(t, l.Key(NameKubernetes), oldKey)
			put(t, durable.Hidden(cert), get(t, l.Cert(NameEtcd)))
			if err := next(l); name == "a start" && err == nil || get(t, cert) != now {
				t.Errorf("with a stranger under the hidden name: %v", err)
			}
		})
	}
}

// What cannot be put in place leaves the pair as it was, or is ended by the next renewal.
func TestNewKeyFails(t *testing.T) {
	l := young(t)
	before := contents(t, l.Dir)
	put(t, filepath.Join(durable.Hidden(l.Key(NameEtcd)), "in the way"), "") // a directory in place of the hidden key
	_, err := Renew(l, RenewOptions{Names: []string{NameEtcd}, NewKey: true, Now: at(time.Now())})
	if err == nil || !strings.Contains(err.Error(), "renew "+l.Cert(NameEtcd)) {
		t.Errorf("Renew = %v", err)
	}
	if err := os.RemoveAll(durable.Hidden(l.Key(NameEtcd))); err != nil {
		t.Fatal(err)
	}
	after := contents(t, l.Dir)
	for name, was := range before {
		if after[name] != was {
			t.Errorf("%s has changed", name)
		}
	}
}
