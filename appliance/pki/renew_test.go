package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/durable"
)

// young returns a directory whose certificates were made just now, unlike those of fresh.
func young(t *testing.T) Layout {
	t.Helper()
	l, s := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}, testSpec()
	s.Now = nil
	ensure(t, l, s)
	return l
}

func renewals(t *testing.T, l Layout, now time.Time) map[string]Renewal {
	t.Helper()
	all, err := Renewals(l, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	byFile := map[string]Renewal{}
	for _, r := range all {
		byFile[filepath.Base(r.File)] = r
	}
	return byFile
}

// ourFiles are those that kthwd renews by itself.
var ourFiles = []string{
	"admin.kubeconfig", "admin.pem", "etcd.pem", "front-proxy-client.pem", "kthwd-health.pem",
	"kube-controller-manager.kubeconfig", "kube-controller-manager.pem", "kube-scheduler.kubeconfig", "kube-scheduler.pem", "kubernetes.pem",
}

// Certificates are due when a third of a year is left, at different times, and those of ten
// years no earlier; one for an emergency never is.
func TestDue(t *testing.T) {
	l := young(t)
	now := time.Now()
	all := renewals(t, l, now)
	var ours []string
	for name, r := range all {
		if r.Cannot != "" {
			t.Errorf("%s cannot be renewed: %s", name, r.Cannot)
		}
		if r.Due.IsZero() {
			continue
		}
		ours = append(ours, name)
		if left := r.NotAfter.Sub(r.Due); left < leafLife/3 || left > leafLife/3+leafLife/36+time.Hour {
			t.Errorf("%s is due %v before its end", name, left)
		}
		if r.IsDue(r.Due.Add(-time.Second)) || !r.IsDue(r.Due) {
			t.Errorf("%s: due at %v, but not then", name, r.Due)
		}
	}
	if slices.Sort(ours); !slices.Equal(ours, ourFiles) {
		t.Errorf("due some day: %q, want %q", ours, ourFiles)
	}
	if a, b := all["kubernetes.pem"], all["etcd.pem"]; a.NotAfter.Sub(a.Due) == b.NotAfter.Sub(b.Due) {
		t.Error("two certificates are due at the same time")
	}
	old := certificate(t, l.Cert(NameKubernetes))
	reissue(t, l, NameKubernetes, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = old.NotBefore, old.NotBefore.Add(lifetime) })
	if r := renewals(t, l, now)["kubernetes.pem"]; r.NotAfter.Sub(r.Due) > leafLife/2 {
		t.Errorf("a certificate of ten years is due %v before its end", r.NotAfter.Sub(r.Due))
	}
}

// A renewal keeps key, subject, names and uses, and the old file; nothing else changes.
func TestRenew(t *testing.T) {
	l := young(t)
	before := contents(t, l.Dir)
	if done, err := Renew(l, RenewOptions{Due: true}); err != nil || len(done) > 0 {
		t.Fatalf("nothing is due: %+v, %v", done, err)
	}
	wantSame(t, l.Dir, before)
	then := time.Now().Add(leafLife * 3 / 4)
	done, err := Renew(l, RenewOptions{Due: true, Now: at(then)})
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, r := range done {
		files = append(files, filepath.Base(r.File))
		if kept, err := os.ReadFile(r.Kept); err != nil || !strings.HasSuffix(before[filepath.Base(r.File)], string(kept)) {
			t.Errorf("%s: kept %s: %v", r.File, r.Kept, err)
		}
		was, _ := os.Stat(r.File)
		is, err := os.Stat(r.Kept)
		if err != nil || is.Mode() != was.Mode() {
			t.Errorf("%s: kept with mode %v, %v", r.File, is.Mode(), err)
		}
	}
	if slices.Sort(files); !slices.Equal(files, ourFiles) {
		t.Errorf("renewed %q, want %q", files, ourFiles)
	}
	after := contents(t, l.Dir)
	for name, was := range before {
		if is := after[name]; (is == was) == slices.Contains(ourFiles, name) {
			t.Errorf("%s: changed is %v", name, is != was)
		}
	}
	s := testSpec()
	s.Now = at(then.Add(leafLife / 2)) // when the old ones have ended
	if r, err := Ensure(l, s); err != nil || len(r.Created) > 0 {
		t.Errorf("Ensure = %+v, %v", r.Created, err)
	}
}

func TestRenewKeeps(t *testing.T) {
	l := young(t)
	reissue(t, l, NameKubernetes, func(c *x509.Certificate) {
		c.Subject.OrganizationalUnit = []string{"of the guide"}
		c.DNSNames = append(c.DNSNames, "more.example.com")
	})
	put(t, l.Kubeconfig(NameScheduler), "# mine\n"+get(t, l.Kubeconfig(NameScheduler)))
	old := certificate(t, l.Cert(NameKubernetes))
	done, err := Renew(l, RenewOptions{Names: []string{NameKubernetes, NameScheduler, NameSuperAdmin}})
	if err != nil || len(done) != 5 {
		t.Fatalf("Renew = %+v, %v", done, err)
	}
	c := certificate(t, l.Cert(NameKubernetes))
	if c.Subject.String() != old.Subject.String() || fmt.Sprint(sans(c)) != fmt.Sprint(sans(old)) || fmt.Sprint(uses(c)) != fmt.Sprint(uses(old)) ||
		!fits(loadPair(t, l, NameKubernetes).key, c.PublicKey) || c.SerialNumber.Cmp(old.SerialNumber) == 0 || c.KeyUsage != old.KeyUsage {
		t.Errorf("got %v for %v, want it like %v for %v", c.Subject, sans(c), old.Subject, sans(old))
	}
	if text := get(t, l.Kubeconfig(NameScheduler)); !strings.HasPrefix(text, "# mine\n") {
		t.Errorf("the comment in kube-scheduler.kubeconfig is lost")
	}
	if end := certificate(t, l.Cert(NameSuperAdmin)).NotAfter; time.Until(end) < lifetime-time.Hour {
		t.Errorf("super-admin.pem ends %v", end)
	}
	for range 3 {
		if _, err := Renew(l, RenewOptions{Names: []string{NameKubernetes}}); err != nil {
			t.Fatal(err)
		}
	}
	kept, _ := filepath.Glob(filepath.Join(l.KeptCertificates(), "kubernetes.pem.*"))
	if len(kept) != keptCopies {
		t.Errorf("kept: %q, want %d", kept, keptCopies)
	}
}

// TestRenewCrash stops a renewal after each of its steps: the file is the old one or the new
// one, it fits its key, and the next renewal succeeds.
func TestRenewCrash(t *testing.T) {
	for _, name := range []string{NameKubernetes, NameScheduler} {
		for steps := range 5 {
			t.Run(fmt.Sprint(name, steps), func(t *testing.T) {
				l := young(t)
				v := newSurvey(l, Spec{})
				v.loadCAs()
				files := v.leafFiles()
				f := files[slices.IndexFunc(files, func(f leafFile) bool { return f.name == name && f.config == (name == NameScheduler) })]
				c, err := v.again(f)
				if err != nil {
					t.Fatal(err)
				}
				data, err := f.with(c)
				if err != nil {
					t.Fatal(err)
				}
				half := func(path string, data []byte) { put(t, durable.Hidden(path), string(data)) }
				for _, do := range []func(){
					func() { os.MkdirAll(l.KeptCertificates(), 0o700) },
					func() { half(filepath.Join(l.KeptCertificates(), filepath.Base(f.path)+".1"), f.data[:100]) },
					func() { keep(l.KeptCertificates(), f, time.Now()) },
					func() { half(f.path, data[:200]) },
				}[:steps] {
					do()
				}
				if got := get(t, f.path); got != string(f.data) {
					t.Fatal("the old file is gone")
				}
				s := testSpec()
				s.Now = nil
				ensure(t, l, s)
				done, err := Renew(l, RenewOptions{Names: []string{name}})
				if err != nil || len(done) == 0 {
					t.Fatalf("Renew = %+v, %v", done, err)
				}
				ensure(t, l, s)
				for _, r := range done {
					if filepath.Base(r.File) == filepath.Base(f.path) && get(t, r.Kept) != string(f.data) {
						t.Errorf("%s is not the old file", r.Kept)
					}
				}
			})
		}
	}
}

// TestRenewKill kills processes that renew without end: each file is whole and fits its key.
func TestRenewKill(t *testing.T) {
	l := young(t)
	for range 10 {
		cmd := helper("renew", l.Dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		out.Read(make([]byte, 1)) // it has begun
		cmd.Process.Kill()
		cmd.Wait()
		if r, err := Check(l, Spec{Server: testSpec().Server}); err != nil || len(r.Missing) > 0 {
			t.Fatalf("Check = %q, %v", r.Missing, err)
		}
	}
}

// A renewal that cannot be made says why, and changes nothing.
func TestCannotRenew(t *testing.T) {
	for _, test := range []struct {
		name, file string
		do         func(*testing.T, Layout)
		want       string
	}{
		{"no key of the CA", "kubernetes.pem", func(t *testing.T, l Layout) { remove(t, l.CAKey()) }, "the key of its CA is not here"},
		{"another key of the CA", "kubernetes.pem", func(t *testing.T, l Layout) { put(t, l.CAKey(), get(t, l.EtcdCAKey())) }, "is not the key of a CA in"},
		{"another CA", "kubernetes.pem", func(t *testing.T, l Layout) {
			o := young(t)
			put(t, l.CA(), get(t, o.CA())+get(t, l.CA()))
			put(t, l.CAKey(), get(t, o.CAKey()))
		}, "another CA has signed it than ca-key.pem is of"},
		{"no key", "kubernetes.pem", func(t *testing.T, l Layout) { remove(t, l.Key(NameKubernetes)) }, "its key is missing"},
		{"another key", "kubernetes.pem", func(t *testing.T, l Layout) { put(t, l.Key(NameKubernetes), get(t, l.Key(NameEtcd))) }, "is not the certificate of"},
		{"half a file", "kubernetes.pem", func(t *testing.T, l Layout) {
			put(t, l.Cert(NameKubernetes), get(t, l.Cert(NameKubernetes))[:300])
		}, "only 0 of the 1 PEM blocks"},
		{"half a kubeconfig", "kube-scheduler.kubeconfig", func(t *testing.T, l Layout) {
			put(t, l.Kubeconfig(NameScheduler), get(t, l.Kubeconfig(NameScheduler))[:300])
		}, "its current-context is not in it"},
		{"a link", "kubernetes.pem", func(t *testing.T, l Layout) {
			if err := errors.Join(os.Rename(l.Cert(NameKubernetes), l.Dir+"/a"), os.Symlink("a", l.Cert(NameKubernetes))); err != nil {
				t.Fatal(err)
			}
		}, "is a symbolic link"},
		{"a kubeconfig that names files", "kube-scheduler.kubeconfig", func(t *testing.T, l Layout) {
			put(t, l.Kubeconfig(NameScheduler), filesConfig)
		}, "its client certificate is in another file"},
		{"a clock behind the CA", "kubernetes.pem", func(t *testing.T, l Layout) {
			old := time.Now().Add(-60 * 24 * time.Hour)
			for name := range contents(t, l.Dir) {
				os.Chtimes(filepath.Join(l.Dir, name), old, old)
			}
		}, "but ca.pem is valid from"},
		{"a clock behind the files", "kubernetes.pem", func(t *testing.T, l Layout) {}, "names.json was written on"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, now := young(t), time.Now()
			if strings.HasPrefix(test.name, "a clock") {
				put(t, l.Names(), "{}")
				now = now.Add(-48 * time.Hour)
				later := time.Now().Add(time.Hour)
				os.Chtimes(l.Names(), later, later)
			}
			test.do(t, l)
			r := renewals(t, l, now)[test.file]
			if !strings.Contains(r.Cannot, test.want) {
				t.Errorf("cannot, because %q; want %q", r.Cannot, test.want)
			}
			before := contents(t, l.Dir)
			_, err := Renew(l, RenewOptions{Names: []string{r.Name}, Now: at(now)})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Renew = %v, want %q", err, test.want)
			}
			if after := contents(t, l.Dir); after[test.file] != before[test.file] {
				t.Errorf("%s has changed", test.file)
			}
		})
	}
}

// A leaf ends with its CA; when it does already, it is not renewed again and again.
func TestRenewUpToTheCAsEnd(t *testing.T) {
	l := young(t)
	end := certificate(t, l.CA()).NotAfter
	now := at(end.Add(-200 * 24 * time.Hour))
	done, err := Renew(l, RenewOptions{Names: []string{NameKubernetes}, Now: now})
	if err != nil || len(done) != 1 || !done[0].Shortened || !done[0].Until.Equal(end) {
		t.Fatalf("Renew = %+v, %v; want one that ends with the CA on %v", done, err, end)
	}
	later := end.Add(-10 * 24 * time.Hour)
	if r := renewals(t, l, later)["kubernetes.pem"]; !r.IsDue(later) || !strings.Contains(r.Cannot, "it ends with its CA") {
		t.Errorf("10 days before the end of the CA: %+v", r)
	}
	if done, err := Renew(l, RenewOptions{Due: true, Now: at(later)}); err == nil || slices.ContainsFunc(done, func(r Renewed) bool { return r.Name == NameKubernetes }) {
		t.Errorf("Renew = %+v, %v", done, err)
	}
}

// One file that cannot be renewed does not keep the others.
func TestRenewOthers(t *testing.T) {
	l := young(t)
	remove(t, l.EtcdCAKey())
	done, err := Renew(l, RenewOptions{All: true})
	if f, ok := errors.AsType[*Failed](err); !ok || f.File != l.Cert(NameEtcd) || len(done) != len(ourFiles)-1 {
		t.Errorf("Renew = %d files, %v; want all but etcd.pem", len(done), err)
	}
	if _, err := Renew(l, RenewOptions{Names: []string{"ca"}}); err == nil {
		t.Error("a CA was renewed")
	}
}

// A file that the configuration has elsewhere belongs to whoever made it.
func TestRenewElsewhere(t *testing.T) {
	l := young(t)
	name := filepath.Base(l.Kubeconfig(NameScheduler))
	path := filepath.Join(t.TempDir(), "theirs")
	if err := os.Rename(filepath.Join(l.Dir, name), path); err != nil {
		t.Fatal(err)
	}
	before, _, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Elsewhere = map[string]string{name: path}
	done, err := Renew(l, RenewOptions{All: true})
	if f, ok := errors.AsType[*Failed](err); !ok || f.File != path || len(done) != len(ourFiles)-1 {
		t.Errorf("Renew = %d files, %v; want all but %s", len(done), err, path)
	}
	if after, _, err := read(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("it was replaced, %v", err)
	}
}

// An Ensure that may renews what has expired, where the key of the CA is.
func TestEnsureRenewsExpired(t *testing.T) {
	l, s := young(t), testSpec()
	s.Now, s.RenewExpired = at(time.Now().Add(2*leafLife)), true
	r, err := Ensure(l, s)
	if err != nil || len(r.Created) > 0 || len(r.Renewed) != 6 {
		t.Fatalf("Ensure = %+v, %v; want the 6 files in use renewed", r, err)
	}
	if r, err = Ensure(l, s); err != nil || len(r.Renewed) > 0 {
		t.Errorf("again: %+v, %v", r.Renewed, err)
	}

	l = young(t)
	remove(t, l.CAKey())
	before := contents(t, l.Dir)
	_, err = Ensure(l, s)
	if ms := misfits(err); len(ms) == 0 || !strings.Contains(ms[0].Problem, "it cannot be renewed, because the key of its CA is not here") || !strings.Contains(ms[0].Hint, "--csr-out") {
		t.Errorf("Ensure without the key = %v", err)
	}
	wantSame(t, l.Dir, before)

	l = young(t)
	future := time.Now().Add(3 * leafLife)
	os.Chtimes(l.Cert(NameServiceAccount), future, future)
	if _, err = Ensure(l, s); err == nil || !strings.Contains(err.Error(), "this machine's clock says") {
		t.Errorf("Ensure with a clock behind its files = %v", err)
	}
}

// answer signs a request as another machine would.
func answer(t *testing.T, l Layout, r Request, ca string, change func(*x509.Certificate)) string {
	t.Helper()
	block, _ := pem.Decode(r.PEM)
	in, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || in.CheckSignature() != nil {
		t.Fatalf("%s: %v", r.File, err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: in.Subject, DNSNames: in.DNSNames, IPAddresses: in.IPAddresses,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(100 * 24 * time.Hour), ExtraExtensions: in.Extensions,
	}
	template.ExtraExtensions = slices.DeleteFunc(template.ExtraExtensions, func(e pkix.Extension) bool { return !e.Id.Equal(oidKeyUsage) && !e.Id.Equal(oidExtKeyUsage) })
	if change != nil {
		change(template)
	}
	signer := loadPair(t, l, ca)
	der, err := x509.CreateCertificate(rand.Reader, template, signer.chain[0], in.PublicKey, signer.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), r.File+".pem")
	put(t, path, string(encodeCertificates([]*x509.Certificate{c})))
	return path
}

func TestRequestsAndImport(t *testing.T) {
	l, ca := young(t), young(t)
	for _, name := range []string{l.CA(), l.CAKey()} {
		put(t, filepath.Join(ca.Dir, filepath.Base(name)), get(t, name))
	}
	remove(t, l.CAKey())
	all, err := Requests(l, []string{NameKubernetes, NameAdmin})
	if err != nil || len(all) != 2 || len(all[0].For) != 1 || len(all[1].For) != 2 || all[1].File != "admin.csr" {
		t.Fatalf("Requests = %+v, %v", all, err)
	}
	before := contents(t, l.Dir)
	for want, change := range map[string]func(*x509.Certificate){
		"it lacks names that the one in use has: lb.example.org": func(c *x509.Certificate) {
			c.DNSNames = slices.DeleteFunc(c.DNSNames, func(n string) bool { return n == "lb.example.org" })
		},
		"it is for ": func(c *x509.Certificate) { c.Subject.CommonName = "other" },
		"it is valid from ": func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(-time.Hour)
			c.NotBefore = c.NotAfter.Add(-time.Hour)
		},
		"and its CA before that": func(c *x509.Certificate) { c.NotAfter = certificate(t, ca.CA()).NotAfter.Add(time.Hour) },
		"certificate of a CA":    func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true },
		"not issued for client ": func(c *x509.Certificate) {
			c.ExtraExtensions, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		},
	} {
		good, bad := answer(t, ca, all[1], NameCA, nil), answer(t, ca, all[0], NameCA, change)
		if done, err := Import(l, []string{good, bad}, time.Now()); err == nil || len(done) > 0 || !strings.Contains(err.Error(), want) {
			t.Errorf("Import = %+v, %v; want %q", done, err, want)
		}
	}
	stranger := answer(t, ca, all[0], NameEtcdCA, nil)
	half := filepath.Join(t.TempDir(), "half")
	put(t, half, get(t, stranger)[:300])
	for path, want := range map[string]string{
		stranger: "not signed by a CA in", half: "only 0 of the 1 PEM blocks", ca.Cert(NameKubernetes): "its key is none of those in",
	} {
		if _, err := Import(l, []string{path}, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Import of %s = %v; want %q", filepath.Base(path), err, want)
		}
	}
	if _, err := Import(l, []string{answer(t, ca, all[0], NameCA, nil)}, time.Now().Add(-48*time.Hour)); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("Import with a clock behind = %v", err)
	}
	wantSame(t, l.Dir, before)
	more := func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "grown.example.com") }
	done, err := Import(l, []string{answer(t, ca, all[0], NameCA, more), answer(t, ca, all[1], NameCA, nil)}, time.Now())
	if err != nil || len(done) != 3 {
		t.Fatalf("Import = %+v, %v", done, err)
	}
	if c := certificate(t, l.Cert(NameKubernetes)); c.VerifyHostname("grown.example.com") != nil {
		t.Errorf("got %v", sans(c))
	}
	s := testSpec()
	s.Now = nil
	ensure(t, l, s)
}

// Certificates that a controller gets without the key to renew them have a long life.
func TestSharedLivesLong(t *testing.T) {
	l := young(t)
	for _, caKey := range []bool{false, true} {
		shared, err := Share(l, nil, caKey)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]bool{"kthwd-health.pem": !caKey, "kube-scheduler.kubeconfig": !caKey, "front-proxy-client.pem": true, "admin.kubeconfig": false} {
			var c *x509.Certificate
			if strings.HasSuffix(name, ".pem") {
				chain, _, err := parseCertificates(shared.Files[name])
				if err != nil {
					t.Fatal(err)
				}
				c = chain[0]
			} else {
				a, err := parseKubeconfig(shared.Files[name], "")
				if err != nil {
					t.Fatal(err)
				}
				c = a.client.chain[0]
			}
			if long := time.Until(c.NotAfter) > 2*leafLife; long != want {
				t.Errorf("caKey %v: %s ends %v", caKey, name, c.NotAfter)
			}
		}
	}
	for _, everywhere := range []bool{false, true} {
		c := testCluster(t.TempDir())
		c.Spec.Now = nil
		for i := range c.Machines {
			c.Machines[i].CAKey = everywhere && c.Machines[i].Server != ""
		}
		if _, err := EnsureCluster(c); err != nil {
			t.Fatal(err)
		}
		for name, long := range map[string]bool{NameKubernetes: !everywhere, NameEtcd: !everywhere, NameFrontProxyClient: true} {
			if end := certificate(t, Layout{Dir: c.Machines[0].Dir}.Cert(name)).NotAfter; time.Until(end) > 2*leafLife != long {
				t.Errorf("keys everywhere %v: %s ends %v", everywhere, name, end)
			}
		}
	}
}
