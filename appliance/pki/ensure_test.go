package pki

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"kthwd/test/harness"
)

func TestFreshDirectory(t *testing.T) {
	l := Layout{Dir: filepath.Join(t.TempDir(), "var", "lib", "kubernetes")}
	if report, err := Check(l, testSpec()); err != nil || len(report.Missing) != 31 {
		t.Errorf("Check of nothing = %d files missing, %v; want 31, nil", len(report.Missing), err)
	}
	report := ensure(t, l, testSpec())
	if len(report.Kept)+len(report.Warnings)+len(report.Missing) > 0 {
		t.Errorf("report = %+v, want files created only", report)
	}
	var got strings.Builder
	for _, path := range append([]string{l.Dir}, report.Created...) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%s %s\n", info.Mode(), filepath.Base(path))
	}
	harness.Golden(t, "testdata/files.golden", []byte(got.String()))
	if there := len(contents(t, l.Dir)) - 1; there != len(report.Created) {
		t.Errorf("%d files are there, %d reported", there, len(report.Created))
	}
}

func TestUmaskDoesNotMatter(t *testing.T) {
	for _, mask := range []int{0, 0o277} {
		l := Layout{Dir: t.TempDir()}
		old := syscall.Umask(mask)
		_, err := Ensure(l, testSpec())
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]os.FileMode{l.CA(): modePublic, l.CAKey(): modeSecret, l.Kubeconfig(NameAdmin): modeSecret} {
			if info, err := os.Stat(path); err != nil || info.Mode() != want {
				t.Errorf("umask %03o: %s has mode %v, %v; want %v", mask, filepath.Base(path), info.Mode(), err, want)
			}
		}
	}
}

func TestSecondEnsureChangesNothing(t *testing.T) {
	l := filled(t)
	before := contents(t, l.Dir)
	report := ensure(t, l, testSpec())
	if len(report.Created) > 0 || len(report.Kept) != 31 || len(report.Warnings) > 0 {
		t.Errorf("report = %+v, want 31 files kept", report)
	}
	wantSame(t, l.Dir, before)
}

// TestCertificates compares everything about issued certificates but their bytes.
func TestCertificates(t *testing.T) {
	l := fresh(t)
	var got strings.Builder
	for _, r := range certificates {
		c := certificate(t, l.Cert(r.name))
		fmt.Fprintf(&got, "%s.pem\n  subject  %s\n  issuer   %s\n  sans     %s\n  key      %s, usage %b\n  uses     %s\n  lifetime %s to %s\n",
			r.name, c.Subject, c.Issuer, strings.Join(sans(c), " "), keyType(c.PublicKey), c.KeyUsage,
			strings.Join(uses(c), " "), c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339))
		if c.IsCA {
			fmt.Fprintf(&got, "  path     %d\n", c.MaxPathLen)
		}
		if len(c.SubjectKeyId) != 20 {
			t.Errorf("%s: SubjectKeyId has %d bytes, want 20", r.name, len(c.SubjectKeyId))
		}
		if bits := c.SerialNumber.BitLen(); bits > 129 || bits < 64 {
			t.Errorf("%s: serial number of %d bits, want about 128", r.name, bits)
		}
	}
	harness.Golden(t, "testdata/certificates.golden", []byte(got.String()))
}

var secrets = regexp.MustCompile(`(-data|secret): .+`)

func TestDocuments(t *testing.T) {
	l := fresh(t)
	var got strings.Builder
	for _, path := range []string{l.Kubeconfig(NameAdmin), l.Kubeconfig(NameControllerManager), l.Kubeconfig(NameScheduler), l.EncryptionConfig()} {
		fmt.Fprintf(&got, "--- %s\n%s", filepath.Base(path), secrets.ReplaceAllString(get(t, path), "$1: (left out)"))
	}
	harness.Golden(t, "testdata/documents.golden", []byte(got.String()))
	if a, b := get(t, l.EncryptionConfig()), get(t, filled(t).EncryptionConfig()); a == b {
		t.Error("two encryption configurations have the same key")
	}
}

// TestTutorialDirectory: the tutorial's files are used unchanged, and only missing ones
// are added.
func TestTutorialDirectory(t *testing.T) {
	for encoding := range encodings {
		t.Run(encoding, func(t *testing.T) {
			l := tutorial(t, encoding)
			before := contents(t, l.Dir)
			report := ensure(t, l, testSpec())
			want := []string{"kthwd-health-key.pem", "kthwd-health.pem", "front-proxy-ca-key.pem", "front-proxy-ca.pem",
				"front-proxy-client-key.pem", "front-proxy-client.pem", "audit-policy.yaml", "authentication-config.yaml"}
			if got := bases(report.Created); !slices.Equal(got, want) {
				t.Errorf("created %q, want %q", got, want)
			}
			for _, path := range report.Created {
				os.Remove(path)
			}
			wantSame(t, l.Dir, before)
			wantWarning(t, report, l.Cert(NameKubernetes), "lb.example.org")
			wantWarning(t, report, l.Cert(NameKubernetes), "kubernetes.default.svc")
		})
	}
}

func wantWarning(t *testing.T, report Report, parts ...string) {
	t.Helper()
	if !slices.ContainsFunc(report.Warnings, func(w string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(w, p) })
	}) {
		t.Errorf("warnings = %q, want one with %q", report.Warnings, parts)
	}
}

// TestWarnings covers files that work, but cause a warning.
func TestWarnings(t *testing.T) {
	dates := func(days int) func(*testing.T, Layout, *Spec) {
		return func(t *testing.T, l Layout, s *Spec) {
			s.Now = at(certificate(t, l.Cert(NameKubernetes)).NotAfter.AddDate(0, 0, -days))
		}
	}
	for _, test := range []struct {
		name string
		do   func(*testing.T, Layout, *Spec)
		want []string // nil means no warning
	}{
		{"31 days left", func(t *testing.T, l Layout, s *Spec) {
			later := s.now().Add(adminLife - 31*24*time.Hour)
			s.Now = func() time.Time { return later }
		}, nil},
		{"29 days left", dates(29), []string{"kubernetes.pem: expires on", "in 29 days"}},
		{"a kubeconfig's days", dates(29), []string{"kube-scheduler.kubeconfig: its client certificate expires on"}},
		{"service address", func(t *testing.T, l Layout, s *Spec) { s.ServiceIP[len(s.ServiceIP)-1] = 9 }, []string{"kubernetes.pem: not valid for 10.32.0.9"}},
		{"balancer's address", func(t *testing.T, l Layout, s *Spec) { s.Addresses = []string{"192.0.2.7"} }, []string{"kubernetes.pem: not valid for 192.0.2.7"}},
		{"no CA key", func(t *testing.T, l Layout, s *Spec) { os.Remove(l.CAKey()) }, []string{"ca-key.pem: missing, so kube-controller-manager"}},
		{"a kubeconfig for the group", func(t *testing.T, l Layout, s *Spec) { os.Chmod(l.Kubeconfig(NameAdmin), 0o640) }, []string{"admin.kubeconfig: readable or writable by its group (mode 0640)"}},
		{"a certificate anybody can change", func(t *testing.T, l Layout, s *Spec) { os.Chmod(l.CA(), 0o666) }, []string{"ca.pem: writable by group or others (mode 0666); chmod go-w"}},
		{"encryption key lost", func(t *testing.T, l Layout, s *Spec) {
			os.Remove(l.EncryptionConfig())
			os.MkdirAll(filepath.Join(l.Etcd(), "member", "wal"), 0o700)
			s.NewSecrets = []string{SecretEncryption}
		}, []string{"encryption-config.yaml: newly made, although"}},
		{"a pair beside its kubeconfig that has expired", func(t *testing.T, l Layout, s *Spec) {
			old := &x509.Certificate{Subject: row{cn: "admin", org: "system:masters"}.subject(), ExtKeyUsage: client,
				NotBefore: noon.AddDate(-2, 0, 0), NotAfter: noon.AddDate(-1, 0, 0)}
			admin := loadPair(t, l, NameAdmin)
			put(t, l.Cert(NameAdmin), string(encodeCertificates(sign(t, old, admin.key, loadPair(t, l, NameCA)).chain)))
		}, []string{"admin.pem: expired on", "nothing that runs uses its dates"}},
		{"another common name", func(t *testing.T, l Layout, s *Spec) {
			other := certificate(t, l.Cert(NameKubernetes))
			other.RawSubject, other.Subject.CommonName = nil, "apiserver"
			put(t, l.Cert(NameKubernetes), string(encodeCertificates(sign(t, other, loadPair(t, l, NameKubernetes).key, loadPair(t, l, NameCA)).chain)))
		}, []string{`kubernetes.pem: its common name is "apiserver"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l, s := fresh(t), testSpec()
			test.do(t, l, &s)
			report := ensure(t, l, s)
			if test.want != nil {
				wantWarning(t, report, test.want...)
			} else if len(report.Warnings) > 0 {
				t.Errorf("warnings = %q, want none", report.Warnings)
			}
		})
	}
}

// TestAccepted covers directories that differ from a fresh one and are valid, too.
// made lists the files that Ensure adds to them.
func TestAccepted(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(*testing.T, Layout, *Spec)
		made []string
	}{
		{"no pems beside the kubeconfigs", func(t *testing.T, l Layout, s *Spec) {
			for _, name := range []string{NameAdmin, NameControllerManager, NameScheduler} {
				os.Remove(l.Cert(name))
				os.Remove(l.Key(name))
			}
		}, nil},
		{"half a pair beside its kubeconfig", func(t *testing.T, l Layout, s *Spec) { os.Remove(l.Key(NameAdmin)) }, nil},
		{"a kubeconfig lost", func(t *testing.T, l Layout, s *Spec) { os.Remove(l.Kubeconfig(NameScheduler)) }, []string{"kube-scheduler.kubeconfig"}},
		{"a kubeconfig and its pair lost", func(t *testing.T, l Layout, s *Spec) {
			os.Remove(l.Kubeconfig(NameScheduler))
			os.Remove(l.Cert(NameScheduler))
			os.Remove(l.Key(NameScheduler))
		}, []string{"kube-scheduler-key.pem", "kube-scheduler.pem", "kube-scheduler.kubeconfig"}},
		{"a pair lost", func(t *testing.T, l Layout, s *Spec) {
			os.Remove(l.Cert(NameHealth))
			os.Remove(l.Key(NameHealth))
		}, []string{"kthwd-health-key.pem", "kthwd-health.pem"}},
		{"a remote server", func(t *testing.T, l Layout, s *Spec) { s.RemoteServer = "https://10.0.0.20:6443" }, []string{"admin-remote.kubeconfig"}},
		{"a kubeconfig for the balancer", func(t *testing.T, l Layout, s *Spec) {
			replace(t, l.Kubeconfig(NameScheduler), "https://127.0.0.1:6443", "https://10.0.0.20:8443")
		}, nil},
		{"an admin on another port", func(t *testing.T, l Layout, s *Spec) {
			replace(t, l.Kubeconfig(NameAdmin), "https://127.0.0.1:6443", "https://127.0.0.1:9443")
		}, nil},
		{"a kubeconfig that names files", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Kubeconfig(NameScheduler), filesConfig)
		}, nil},
		{"service account: a bare public key", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Cert(NameServiceAccount), publicKey(t, loadPair(t, l, NameServiceAccount)))
		}, nil},
		{"service account: the old public key, too", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Cert(NameServiceAccount), publicKey(t, loadPair(t, l, NameKubernetes))+get(t, l.Cert(NameServiceAccount)))
		}, nil},
		{"service account: expired", func(t *testing.T, l Layout, s *Spec) {
			old := &x509.Certificate{Subject: row{cn: "sa"}.subject(), NotBefore: noon.AddDate(-2, 0, 0), NotAfter: noon.AddDate(-1, 0, 0)}
			put(t, l.Cert(NameServiceAccount), string(encodeCertificates(
				sign(t, old, loadPair(t, l, NameServiceAccount).key, loadPair(t, l, NameCA)).chain)))
		}, nil},
		{"service account: the key alone", func(t *testing.T, l Layout, s *Spec) { os.Remove(l.Cert(NameServiceAccount)) }, []string{"service-account.pem"}},
		{"a bundle with an intermediate CA", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.CA(), string(encodeCertificates(sign(t, &x509.Certificate{Subject: row{cn: "Kubernetes", org: "Kubernetes"}.subject(),
				IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, loadPair(t, l, NameCA).key, pair{}).chain)))
			for _, k := range kubeconfigs {
				os.Remove(l.Kubeconfig(k.name)) // contain the previous CA
			}
			key, _ := newKey()
			between := sign(t, &x509.Certificate{Subject: row{cn: "between"}.subject(), IsCA: true, BasicConstraintsValid: true,
				KeyUsage: x509.KeyUsageCertSign}, key, loadPair(t, l, NameCA))
			leaf := sign(t, certificate(t, l.Cert(NameKubernetes)), loadPair(t, l, NameKubernetes).key, between)
			put(t, l.Cert(NameKubernetes), string(encodeCertificates(append(leaf.chain, between.chain...))))
		}, []string{"super-admin.kubeconfig", "admin.kubeconfig", "kube-controller-manager.kubeconfig", "kube-scheduler.kubeconfig"}},
		{"a bundle with the CA", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Cert(NameKubernetes), get(t, l.Cert(NameKubernetes))+get(t, l.CA()))
		}, nil},
		{"a CA that is being replaced", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.CA(), get(t, l.CA())+get(t, l.Cert(NameFrontProxyCA)))
		}, nil},
		{"text around the PEM", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Cert(NameKubernetes), "Certificate:\n    Data:\n"+get(t, l.Cert(NameKubernetes)))
			put(t, l.Key(NameKubernetes), "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"+get(t, l.Key(NameKubernetes)))
		}, nil},
		{"links to files elsewhere", func(t *testing.T, l Layout, s *Spec) {
			away := filepath.Join(t.TempDir(), "key")
			os.Rename(l.CAKey(), away)
			os.Symlink(away, l.CAKey())
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l, s := fresh(t), testSpec()
			test.do(t, l, &s)
			before := contents(t, l.Dir)
			looked, err := Check(l, s)
			if err != nil || !slices.Equal(bases(looked.Missing), test.made) {
				t.Errorf("Check = missing %q, %v; want %q", bases(looked.Missing), err, test.made)
			}
			wantSame(t, l.Dir, before)
			report := ensure(t, l, s)
			if got := bases(report.Created); !slices.Equal(got, test.made) {
				t.Errorf("created %q, want %q", got, test.made)
			}
			for name, was := range before {
				if is := contents(t, l.Dir)[name]; is != was {
					t.Errorf("%s has changed", name)
				}
			}
			if again := ensure(t, l, s); len(again.Created) > 0 {
				t.Errorf("created %q at last, want nothing", again.Created)
			}
		})
	}
}

const filesConfig = `
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: a, user: b}}]
clusters: [{name: a, cluster: {server: "https://localhost:6443", certificate-authority: ca.pem}}]
users: [{name: b, user: {client-certificate: kube-scheduler.pem, client-key: ./kube-scheduler-key.pem}}]
`

// TestLeafDoesNotOutliveItsCA: otherwise no date in the leaf would show when the CA ends.
func TestLeafDoesNotOutliveItsCA(t *testing.T) {
	l, s := fresh(t), testSpec()
	os.Remove(l.Cert(NameHealth))
	ca := certificate(t, l.CA())
	s.Now, s.RenewExpired = at(ca.NotAfter.AddDate(0, -2, 0)), true // the others
	ensure(t, l, s)
	leaf := certificate(t, l.Cert(NameHealth))
	if !leaf.NotAfter.Equal(ca.NotAfter) {
		t.Errorf("leaf ends %v, CA %v; want the same", leaf.NotAfter, ca.NotAfter)
	}
}

// TestAuditPolicy reads the policy as the API server does: the first rule that
// matches decides.
func TestAuditPolicy(t *testing.T) {
	var policy struct {
		Kind       string
		OmitStages []string `yaml:"omitStages"`
		Rules      []auditRule
	}
	if err := yaml.Unmarshal(auditPolicy, &policy); err != nil {
		t.Fatal(err)
	}
	if policy.Kind != "Policy" || !slices.Equal(policy.OmitStages, []string{"RequestReceived"}) {
		t.Errorf("kind %q, omitStages %q", policy.Kind, policy.OmitStages)
	}
	for _, test := range []struct{ user, group, verb, resource, namespace, url, want string }{
		{user: "alice", verb: "get", resource: "/secrets", want: "Metadata"},
		{user: "alice", verb: "create", resource: "/serviceaccounts/token", want: "Metadata"},
		{user: "alice", verb: "create", resource: "authentication.k8s.io/tokenreviews", want: "Metadata"},
		{user: "alice", verb: "delete", resource: "apps/deployments", want: "Metadata"},
		{user: "alice", verb: "update", resource: "coordination.k8s.io/leases", namespace: "kube-system", want: "Metadata"},
		{user: "system:kube-scheduler", verb: "update", resource: "coordination.k8s.io/leases", namespace: "kube-system", want: "None"},
		{user: "system:kube-scheduler", verb: "delete", resource: "coordination.k8s.io/leases", namespace: "kube-system", want: "Metadata"},
		{user: "system:kube-controller-manager", verb: "get", resource: "/secrets", want: "Metadata"},
		{user: "system:node:w1", group: "system:nodes", verb: "update", resource: "coordination.k8s.io/leases", namespace: "kube-node-lease", want: "None"},
		{user: "system:kube-proxy", verb: "watch", resource: "discovery.k8s.io/endpointslices", want: "None"},
		{user: "system:kube-proxy", verb: "get", resource: "/secrets", want: "Metadata"},
		{user: "system:apiserver", verb: "list", resource: "/namespaces", want: "None"},
		{user: "system:apiserver", verb: "create", resource: "/namespaces", want: "Metadata"},
		{user: "alice", verb: "create", resource: "/events", want: "None"},
		{user: "system:anonymous", verb: "get", url: "/readyz/ping", want: "None"},
		{user: "system:anonymous", verb: "get", url: "/version", want: "None"},
		{user: "system:anonymous", verb: "get", url: "/apis", want: "Metadata"},
	} {
		i := slices.IndexFunc(policy.Rules, func(r auditRule) bool {
			return r.matches(test.user, test.group, test.verb, test.resource, test.namespace, test.url)
		})
		if got := policy.Rules[i].Level; got != test.want {
			t.Errorf("%+v: rule %d says %s, want %s", test, i, got, test.want)
		}
	}
}

type auditRule struct {
	Level             string
	Users             []string
	Groups            []string `yaml:"userGroups"`
	Verbs, Namespaces []string
	URLs              []string `yaml:"nonResourceURLs"`
	Resources         []struct {
		Group     string
		Resources []string
	}
}

func (r auditRule) matches(user, group, verb, resource, namespace, url string) bool {
	in := func(list []string, s string) bool { return len(list) == 0 || slices.Contains(list, s) }
	if !in(r.Users, user) || !in(r.Groups, group) || !in(r.Verbs, verb) {
		return false
	}
	if len(r.Resources)+len(r.Namespaces)+len(r.URLs) == 0 {
		return true
	}
	if url != "" {
		return slices.ContainsFunc(r.URLs, func(p string) bool {
			prefix, wild := strings.CutSuffix(p, "*")
			return p == url || wild && strings.HasPrefix(url, prefix)
		})
	}
	if !in(r.Namespaces, namespace) {
		return false
	}
	for _, g := range r.Resources {
		for _, name := range g.Resources {
			if g.Group+"/"+name == resource {
				return true
			}
		}
	}
	return false
}
