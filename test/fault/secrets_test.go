package fault

import (
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// A directory with etcd data never gets new secrets by itself.
func TestLostSecrets(t *testing.T) {
	kthwtest.Turn(t, 1)
	elsewhere := "--etcd-data-dir=" + filepath.Join(t.TempDir(), "etcd")
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{elsewhere}})
	kthwtest.WaitFor(t, "a write", soon, func() error { return write(t, c.Client(t), "kept") })
	stop(t, c, syscall.SIGTERM, 0)
	a := attempt{dir: c.Dir, ports: c.Ports, args: []string{elsewhere}}
	for _, tt := range []struct {
		secret, missing string
		globs           []string
	}{
		{"encryption-config", "encryption-config.yaml", []string{"encryption-config.yaml"}},
		{"service-account", "service-account-key.pem", []string{"service-account*.pem"}},
		{"ca", "ca-key.pem", []string{"ca*.pem", "admin*", "super-admin*", "kube*", "kthwd-health*", "service-account.pem"}}, // with all that it has signed
		{"etcd-ca", "etcd-ca-key.pem", []string{"etcd*.pem"}},                                                                // names.json remembers them
	} {
		t.Run(tt.secret, func(t *testing.T) {
			defer away(t, c.Dir, tt.globs...)()
			before := contents(t, c.Dir)
			a.run(t).check(t, 1, "--new-secrets="+tt.secret, filepath.Join(c.Dir, tt.missing)+": missing", "etcd data in "+strings.TrimPrefix(elsewhere, "--etcd-data-dir="))
			sameContents(t, c.Dir, before)
		})
	}
	t.Run("a new one that is meant", func(t *testing.T) {
		away(t, c.Dir, "encryption-config.yaml")
		out, err := exec.Command(kthwtest.Binary(t), "pki", "init", "--config=", "--data-dir="+c.Dir, elsewhere, "--new-secrets=encryption-config",
			"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", c.Ports.Secure)).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "made  "+filepath.Join(c.Dir, "encryption-config.yaml")) || !strings.Contains(string(out), "cannot be read") {
			t.Fatalf("pki init: %v\n%s\nwant the file, and a warning", err, out)
		}
		c := again(t, c, kthwtest.Options{Args: []string{elsewhere}})
		kthwtest.WaitFor(t, "what was written", soon, func() error { return has(t, c.Client(t), "kept") })
	})
	t.Run("a name that is none", func(t *testing.T) {
		runToEnd(t, nil, "pki", "init", "--data-dir="+c.Dir, "--new-secrets=keys").check(t, 2, "encryption-config", "--new-secrets=keys: no such secret")
	})
}

// away moves the files that match out of the directory until they are put back.
func away(t *testing.T, dir string, globs ...string) (putBack func()) {
	t.Helper()
	other := t.TempDir()
	var names []string
	for _, glob := range globs {
		found, err := filepath.Glob(filepath.Join(dir, glob))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: no %s (%v)", dir, glob, err)
		}
		names = append(names, found...)
	}
	move := func(from, to string) {
		for _, name := range names {
			if err := os.Rename(filepath.Join(from, filepath.Base(name)), filepath.Join(to, filepath.Base(name))); err != nil {
				t.Error(err)
			}
		}
	}
	move(dir, other)
	return func() { move(other, dir) }
}

// A certificate that is made anew keeps the names of the one before it: of one that was moved
// away, as a hint says, by the next start or by a verb, and of one that a verb renews.
func TestNewCertificateKeepsNames(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--subject-alt-name=lb.example.com"}})
	stop(t, c, syscall.SIGTERM, 0)
	run := func(args ...string) string {
		out, err := exec.Command(kthwtest.Binary(t), append(args, "--config=", "--data-dir="+c.Dir)...).CombinedOutput()
		if err != nil {
			t.Fatalf("kthwd %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	for _, tt := range []struct {
		name string
		anew func()
	}{
		{"a start", func() {
			away(t, c.Dir, "kubernetes*.pem")
			c = again(t, c, kthwtest.Options{})
			if log := c.Log.String(); !strings.Contains(log, "with the names of the one before it, too: lb.example.com") {
				t.Errorf("log: got\n%s\nwant the name", log)
			}
			stop(t, c, syscall.SIGTERM, 0)
		}},
		{"pki init", func() {
			away(t, c.Dir, "kubernetes*.pem")
			run("pki", "init", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", c.Ports.Secure))
		}},
		{"pki renew", func() { run("pki", "renew", "kubernetes") }},
	} {
		before := serial(t, c.Dir)
		tt.anew()
		if serial(t, c.Dir) == before {
			t.Errorf("%s: kubernetes.pem is the old one", tt.name)
		}
		if out := run("pki", "show"); !strings.Contains(out, "lb.example.com") {
			t.Errorf("%s: pki show: got %s, want the name", tt.name, out)
		}
	}
}

// serial is the number of kubernetes.pem.
func serial(t *testing.T, dir string) string {
	t.Helper()
	cert, err := x509.ParseCertificate(block(t, dir, "kubernetes.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return cert.SerialNumber.String()
}
