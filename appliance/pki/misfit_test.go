package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func replace(t *testing.T, path, old, new string) {
	t.Helper()
	data := get(t, path)
	if !strings.Contains(data, old) {
		t.Fatalf("%s: no %q in it", path, old)
	}
	put(t, path, strings.ReplaceAll(data, old, new))
}

func publicKey(t *testing.T, p pair) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(p.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// reissue changes a certificate but keeps its key and CA.
func reissue(t *testing.T, l Layout, name string, change func(*x509.Certificate)) {
	t.Helper()
	issuer := NameCA
	if i := slices.IndexFunc(rowsOf(l), func(r row) bool { return r.name == name && r.issuer != "" }); i >= 0 {
		issuer = rowsOf(l)[i].issuer
	}
	p, ca := loadPair(t, l, name), loadPair(t, l, issuer)
	change(p.chain[0])
	p.chain[0].SerialNumber = nil
	put(t, l.Cert(name), string(encodeCertificates(sign(t, p.chain[0], p.key, ca).chain)))
}

// repack puts the pair of one name into the kubeconfig of another.
func repack(t *testing.T, l Layout, name string, client, ca pair) {
	t.Helper()
	data, err := renderKubeconfig(Spec{}, "https://127.0.0.1:6443", ca, client)
	if err != nil {
		t.Fatal(err)
	}
	put(t, l.Kubeconfig(name), string(data))
}

// nameKey makes a kubeconfig name the file of its key.
func nameKey(t *testing.T, l Layout, name string) {
	t.Helper()
	data := regexp.MustCompile(`client-key-data: .*`).ReplaceAllString(get(t, l.Kubeconfig(name)), "client-key: "+filepath.Base(l.Key(name)))
	put(t, l.Kubeconfig(name), data)
}

func remove(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMisfits: each misfit is refused and named with all its files. Nothing is written,
// although a file is missing in every case.
func TestMisfits(t *testing.T) {
	other := filled(t) // another cluster's files
	broken := "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	for _, test := range []struct {
		name  string
		do    func(*testing.T, Layout, *Spec)
		files []string // named in the message
		want  string   // also in the message
	}{
		{"an address among the DNS names", func(t *testing.T, l Layout, s *Spec) {
			reissue(t, l, NameKubernetes, func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, append(c.DNSNames, s.Local...) })
		}, []string{"kubernetes.pem"}, ": not valid for 10.0.0.11, 127.0.0.1, where it will be served: a client takes an address from the IP"},
		{"an address among the DNS names of etcd", func(t *testing.T, l Layout, s *Spec) {
			reissue(t, l, NameEtcd, func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, append(c.DNSNames, s.Local...) })
		}, []string{"etcd.pem"}, ": a client takes an address from the IP"},
		{"an address as the common name alone", func(t *testing.T, l Layout, s *Spec) {
			reissue(t, l, NameKubernetes, func(c *x509.Certificate) {
				c.IPAddresses, c.DNSNames, c.Subject.CommonName = nil, nil, s.Local[0]
			})
		}, []string{"kubernetes.pem"}, ": not valid for 10.0.0.11, 127.0.0.1, where it will be served"},
		{"etcd's not for clients", func(t *testing.T, l Layout, s *Spec) {
			reissue(t, l, NameEtcd, func(c *x509.Certificate) { c.ExtKeyUsage = serverAndClient[:1] })
		}, []string{"etcd.pem"}, ": not issued for client use (only for: server)"},
		{"etcd's not for servers", func(t *testing.T, l Layout, s *Spec) {
			reissue(t, l, NameEtcd, func(c *x509.Certificate) { c.ExtKeyUsage = client })
		}, []string{"etcd.pem"}, ": not issued for server use (only for: client)"},
		{"a server that the certificate does not name", func(t *testing.T, l Layout, s *Spec) {
			replace(t, l.Kubeconfig(NameScheduler), "https://127.0.0.1:", "https://127.0.0.9:")
		}, []string{"kube-scheduler.kubeconfig", "kubernetes.pem"}, ": its server is called 127.0.0.9, for which"},
		{"a key that a kubeconfig names, open to all", func(t *testing.T, l Layout, s *Spec) {
			nameKey(t, l, NameScheduler)
			os.Chmod(l.Key(NameScheduler), 0o644)
		}, []string{"kube-scheduler-key.pem"}, "(mode 0644)"},
		{"leaf of another CA", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Cert(NameKubernetes), get(t, other.Cert(NameKubernetes)))
			put(t, l.Key(NameKubernetes), get(t, other.Key(NameKubernetes)))
		}, []string{"kubernetes.pem", "ca.pem"}, ": not signed by "},
		{"service account of another CA", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Cert(NameServiceAccount), get(t, other.Cert(NameServiceAccount)))
			put(t, l.Key(NameServiceAccount), get(t, other.Key(NameServiceAccount)))
		}, []string{"service-account.pem", "ca.pem"}, ": not signed by "},
		{"front proxy of the wrong CA", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Cert(NameFrontProxyClient), get(t, l.Cert(NameHealth)))
			put(t, l.Key(NameFrontProxyClient), get(t, l.Key(NameHealth)))
		}, []string{"front-proxy-client.pem", "front-proxy-ca.pem"}, ": not signed by "},
		{"CA of another cluster", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.CA(), get(t, other.CA()))
		}, []string{"ca-key.pem", "ca.pem"}, ": not the key of "},
		{"CA and key of another cluster", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.CA(), get(t, other.CA()))
			put(t, l.CAKey(), get(t, other.CAKey()))
		}, []string{"kube-scheduler.kubeconfig", "ca.pem"}, ": the certificate authority in it is not "},
		{"key of another certificate", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Key(NameKubernetes), get(t, l.Key(NameServiceAccount)))
		}, []string{"kubernetes-key.pem", "kubernetes.pem"}, ": not the key of "},
		{"service account key of another", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Key(NameServiceAccount), get(t, l.Key(NameKubernetes)))
		}, []string{"service-account-key.pem", "service-account.pem"}, ": not the key of "},
		{"bare public key of another", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Cert(NameServiceAccount), publicKey(t, loadPair(t, l, NameKubernetes)))
		}, []string{"service-account-key.pem", "service-account.pem"}, ": not the key of "},
		{"a service account key Kubernetes cannot use", func(t *testing.T, l Layout, s *Spec) {
			_, key, _ := ed25519.GenerateKey(rand.Reader)
			data, _ := encodeKey(key)
			put(t, l.Key(NameServiceAccount), string(data))
			remove(t, l.Cert(NameServiceAccount))
		}, []string{"service-account-key.pem"}, "this key is Ed25519"},
		{"certificate without its key", func(t *testing.T, l Layout, s *Spec) {
			remove(t, l.Key(NameKubernetes))
		}, []string{"kubernetes.pem", "kubernetes-key.pem"}, ": exists without its key "},
		{"certificate for a kubeconfig without its key", func(t *testing.T, l Layout, s *Spec) {
			remove(t, l.Key(NameAdmin), l.Kubeconfig(NameAdmin))
		}, []string{"admin.pem", "admin-key.pem"}, ": exists without its key "},
		{"service account without its key", func(t *testing.T, l Layout, s *Spec) {
			remove(t, l.Key(NameServiceAccount))
		}, []string{"service-account.pem", "service-account-key.pem"}, ": exists without its key "},
		{"expired", func(t *testing.T, l Layout, s *Spec) {
			s.Now = at(noon.AddDate(1, 1, 0))
		}, []string{"kubernetes.pem"}, ": expired on 2027-01-15 12:00 UTC, and it is now 2027-02-15 12:00 UTC"},
		{"expired kubeconfig", func(t *testing.T, l Layout, s *Spec) {
			s.Now = at(noon.AddDate(1, 1, 0))
		}, []string{"kube-scheduler.kubeconfig"}, ": its client certificate expired on 2027-01-15 12:00 UTC"},
		{"not yet valid", func(t *testing.T, l Layout, s *Spec) {
			s.Now = at(noon.AddDate(-1, 0, 0))
		}, []string{"kubernetes.pem"}, ": is valid only from 2026-01-15 11:55 UTC on, and it is now 2025-01-15 12:00 UTC"},
		{"lacks a local address", func(t *testing.T, l Layout, s *Spec) {
			s.Local = append(s.Local, "10.0.0.13", "c3.example.org")
		}, []string{"kubernetes.pem"}, ": not valid for 10.0.0.13, c3.example.org, where it will be served (it is for lb.example.org"},
		{"not for servers", func(t *testing.T, l Layout, s *Spec) {
			reissue(t, l, NameKubernetes, func(c *x509.Certificate) { c.ExtKeyUsage = client })
		}, []string{"kubernetes.pem"}, ": not issued for server use (only for: client)"},
		{"not for clients", func(t *testing.T, l Layout, s *Spec) {
			reissue(t, l, NameKubernetes, func(c *x509.Certificate) { c.ExtKeyUsage = serverAndClient[:1] })
		}, []string{"kubernetes.pem"}, ": not issued for client use (only for: server)"},
		{"a CA that is none", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.CA(), get(t, l.Cert(NameKubernetes)))
			put(t, l.CAKey(), get(t, l.Key(NameKubernetes)))
		}, []string{"ca.pem"}, `: not the certificate of a CA (it is "CN=kubernetes,O=Kubernetes")`},
		{"a front proxy CA that is none", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Cert(NameFrontProxyCA), get(t, l.Cert(NameHealth)))
			put(t, l.Key(NameFrontProxyCA), get(t, l.Key(NameHealth)))
		}, []string{"front-proxy-ca.pem"}, ": not the certificate of a CA"},
		{"CA key without the CA", func(t *testing.T, l Layout, s *Spec) { remove(t, l.CA()) },
			[]string{"ca-key.pem", "ca.pem"}, ": exists without its certificate "},
		{"CA key alone", func(t *testing.T, l Layout, s *Spec) {
			key := get(t, l.CAKey())
			for name := range contents(t, l.Dir) {
				os.Remove(filepath.Join(l.Dir, name))
			}
			put(t, l.CAKey(), key)
		}, []string{"ca-key.pem", "ca.pem"}, ": exists without its certificate "},
		{"leaves without the CA", func(t *testing.T, l Layout, s *Spec) { remove(t, l.CA(), l.CAKey()) },
			[]string{"ca.pem", "kubernetes.pem", "kthwd-health.pem", "admin.kubeconfig"}, ": missing, although these files are signed by a CA: "},
		{"kubeconfigs without the CA", func(t *testing.T, l Layout, s *Spec) {
			for name := range contents(t, l.Dir) {
				if !strings.HasSuffix(name, ".kubeconfig") {
					os.Remove(filepath.Join(l.Dir, name))
				}
			}
		}, []string{"ca.pem", "kube-scheduler.kubeconfig"}, ": missing, although these files are signed by a CA: "},
		{"front proxy without its CA", func(t *testing.T, l Layout, s *Spec) {
			remove(t, l.Cert(NameFrontProxyCA), l.Key(NameFrontProxyCA))
		}, []string{"front-proxy-ca.pem", "front-proxy-client.pem"}, ": missing, although these files are signed by a CA: "},
		{"something to sign and no CA key", func(t *testing.T, l Layout, s *Spec) {
			remove(t, l.CAKey(), l.Cert(NameHealth), l.Key(NameHealth), l.Cert(NameKubernetes))
		}, []string{"ca-key.pem", "kthwd-health.pem", "kubernetes.pem"}, ": missing, but needed to issue "},
		{"open key", func(t *testing.T, l Layout, s *Spec) { os.Chmod(l.Key(NameServiceAccount), 0o640) },
			[]string{"service-account-key.pem"}, ": readable or writable by group or others (mode 0640)"},
		{"a directory that others can change", func(t *testing.T, l Layout, s *Spec) { os.Chmod(l.Dir, 0o777) },
			[]string{""}, "writable by group or others (mode 0777)"},
		{"a directory that a group can change", func(t *testing.T, l Layout, s *Spec) { os.Chmod(l.Dir, 0o770) },
			[]string{""}, "writable by group or others (mode 0770)"},
		{"a directory like /tmp", func(t *testing.T, l Layout, s *Spec) { os.Chmod(l.Dir, 0o777|os.ModeSticky) },
			[]string{""}, "writable by group or others (mode 0777)"},
		{"writable key", func(t *testing.T, l Layout, s *Spec) { os.Chmod(l.CAKey(), 0o602) },
			[]string{"ca-key.pem"}, ": readable or writable by group or others (mode 0602)"},
		{"open key beside its kubeconfig", func(t *testing.T, l Layout, s *Spec) { os.Chmod(l.Key(NameAdmin), 0o644) },
			[]string{"admin-key.pem"}, ": readable or writable by group or others (mode 0644)"},
		{"open kubeconfig", func(t *testing.T, l Layout, s *Spec) { os.Chmod(l.Kubeconfig(NameAdmin), 0o644) },
			[]string{"admin.kubeconfig"}, ": readable or writable by others (mode 0644)"},
		{"open encryption key", func(t *testing.T, l Layout, s *Spec) { os.Chmod(l.EncryptionConfig(), 0o644) },
			[]string{"encryption-config.yaml"}, ": readable or writable by others (mode 0644)"},
		{"an empty certificate", func(t *testing.T, l Layout, s *Spec) { put(t, l.Cert(NameKubernetes), "") },
			[]string{"kubernetes.pem"}, ": holds no PEM certificate"},
		{"a broken certificate", func(t *testing.T, l Layout, s *Spec) { put(t, l.CA(), broken) },
			[]string{"ca.pem"}, ": certificate 1 in it: x509: "},
		{"a public key for a certificate", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Cert(NameKubernetes), publicKey(t, loadPair(t, l, NameKubernetes)))
		}, []string{"kubernetes.pem"}, ": holds a public key and no certificate"},
		{"garbage for a key", func(t *testing.T, l Layout, s *Spec) { put(t, l.Key(NameKubernetes), "garbage") },
			[]string{"kubernetes-key.pem"}, ": holds no PEM private key"},
		{"half a key", func(t *testing.T, l Layout, s *Spec) {
			key := get(t, l.Key(NameKubernetes))
			put(t, l.Key(NameKubernetes), key[:len(key)/2])
		}, []string{"kubernetes-key.pem"}, ": holds no PEM private key"},
		{"a broken key", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Key(NameKubernetes), strings.ReplaceAll(broken, "CERTIFICATE", "EC PRIVATE KEY"))
		}, []string{"kubernetes-key.pem"}, ": the EC PRIVATE KEY in it is broken"},
		{"an encrypted key", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Key(NameKubernetes), strings.ReplaceAll(broken, "CERTIFICATE", "ENCRYPTED PRIVATE KEY"))
		}, []string{"kubernetes-key.pem"}, ": the key is encrypted with a passphrase"},
		{"a key too large", func(t *testing.T, l Layout, s *Spec) { put(t, l.CAKey(), strings.Repeat(".", maxSize+1)) },
			[]string{"ca-key.pem"}, ": too large"},
		{"a directory for a file", func(t *testing.T, l Layout, s *Spec) { remove(t, l.CAKey()); os.Mkdir(l.CAKey(), 0o700) },
			[]string{"ca-key.pem"}, ": not a regular file"},
		{"a pipe for a file", func(t *testing.T, l Layout, s *Spec) { remove(t, l.CAKey()); syscall.Mkfifo(l.CAKey(), 0o600) },
			[]string{"ca-key.pem"}, ": not a regular file"},
		{"a link to nothing", func(t *testing.T, l Layout, s *Spec) { remove(t, l.CAKey()); os.Symlink("nothing", l.CAKey()) },
			[]string{"ca-key.pem"}, ": a symbolic link to nothing"},
		{"a kubeconfig that is no YAML", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Kubeconfig(NameAdmin), "kind: Config\nusers: hunter2\n")
		}, []string{"admin.kubeconfig"}, ": not the expected YAML, at line 2"},
		{"a kubeconfig of another kind", func(t *testing.T, l Layout, s *Spec) { put(t, l.Kubeconfig(NameAdmin), "kind: Secret\n") },
			[]string{"admin.kubeconfig"}, `: its kind is not Config`},
		{"a kubeconfig without its context", func(t *testing.T, l Layout, s *Spec) {
			replace(t, l.Kubeconfig(NameAdmin), "current-context: default", "current-context: prod")
		}, []string{"admin.kubeconfig"}, `: its current-context is not in it`},
		{"a kubeconfig without its user", func(t *testing.T, l Layout, s *Spec) {
			replace(t, l.Kubeconfig(NameAdmin), "user: admin", "user: bob")
		}, []string{"admin.kubeconfig"}, `: the user of its current-context is not in it`},
		{"a kubeconfig without its cluster", func(t *testing.T, l Layout, s *Spec) {
			replace(t, l.Kubeconfig(NameAdmin), "cluster: kubernetes", "cluster: other")
		}, []string{"admin.kubeconfig"}, `: the cluster of its current-context is not in it`},
		{"a kubeconfig with a token", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Kubeconfig(NameAdmin), regexp.MustCompile(`client-(certificate|key)-data: .*`).ReplaceAllString(get(t, l.Kubeconfig(NameAdmin)), "token$1: hunter2"))
		}, []string{"admin.kubeconfig"}, ": client-certificate: is missing"},
		{"a kubeconfig with a file that is not there", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Kubeconfig(NameScheduler), strings.ReplaceAll(filesConfig, "kube-scheduler-key.pem", "elsewhere.pem"))
		}, []string{"kube-scheduler.kubeconfig", "elsewhere.pem"}, ": client-key: "},
		{"a kubeconfig that is not base64", func(t *testing.T, l Layout, s *Spec) {
			replace(t, l.Kubeconfig(NameAdmin), "client-key-data: ", "client-key-data: =")
		}, []string{"admin.kubeconfig"}, ": client-key: its data is not base64"},
		{"a kubeconfig of another cluster", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.Kubeconfig(NameAdmin), get(t, other.Kubeconfig(NameAdmin)))
		}, []string{"admin.kubeconfig", "ca.pem"}, ": the certificate authority in it is not "},
		{"a kubeconfig with a client of another cluster", func(t *testing.T, l Layout, s *Spec) {
			repack(t, l, NameScheduler, loadPair(t, other, NameScheduler), loadPair(t, l, NameCA))
		}, []string{"kube-scheduler.kubeconfig", "ca.pem"}, ": its client certificate is not signed by "},
		{"a kubeconfig with another's key", func(t *testing.T, l Layout, s *Spec) {
			p := loadPair(t, l, NameScheduler)
			p.key = loadPair(t, l, NameAdmin).key
			repack(t, l, NameScheduler, p, loadPair(t, l, NameCA))
		}, []string{"kube-scheduler.kubeconfig"}, ": its client key is not the key of its client certificate"},
		{"a kubeconfig of somebody else", func(t *testing.T, l Layout, s *Spec) {
			repack(t, l, NameScheduler, loadPair(t, l, NameControllerManager), loadPair(t, l, NameCA))
		}, []string{"kube-scheduler.kubeconfig"}, `: its client certificate is for "CN=system:kube-controller-manager,O=system:kube-controller-manager", want "CN=system:kube-scheduler,O=system:kube-scheduler"`},
		{"a kubeconfig with a server's certificate", func(t *testing.T, l Layout, s *Spec) {
			reissue(t, l, NameScheduler, func(c *x509.Certificate) { c.ExtKeyUsage = serverAndClient[:1] })
			repack(t, l, NameScheduler, loadPair(t, l, NameScheduler), loadPair(t, l, NameCA))
		}, []string{"kube-scheduler.kubeconfig"}, ": its client certificate is not issued for client use (only for: server)"},
		{"a kubeconfig for another port", func(t *testing.T, l Layout, s *Spec) { s.Server = "https://127.0.0.1:7443" },
			[]string{"kube-scheduler.kubeconfig"}, ": its server is https://127.0.0.1:6443, but the API server of this kthwd is at https://127.0.0.1:7443"},
		{"a kubeconfig for the insecure port", func(t *testing.T, l Layout, s *Spec) {
			replace(t, l.Kubeconfig(NameControllerManager), "https://127.0.0.1:6443", "http://127.0.0.1:8080")
		}, []string{"kube-controller-manager.kubeconfig"}, ": its server is not an https URL"},
		{"an encryption configuration that is no YAML", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.EncryptionConfig(), "kind: [hunter2]\n")
		}, []string{"encryption-config.yaml"}, ": not the expected YAML, at line 1"},
		{"an encryption configuration without kind", func(t *testing.T, l Layout, s *Spec) {
			put(t, l.EncryptionConfig(), "resources: []\n")
		}, []string{"encryption-config.yaml"}, ": has no kind"},
		{"an audit policy that is empty", func(t *testing.T, l Layout, s *Spec) { put(t, l.AuditPolicy(), "") },
			[]string{"audit-policy.yaml"}, ": has no kind"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l, s := fresh(t), testSpec()
			remove(t, l.Kubeconfig(NameControllerManager), l.Cert(NameFrontProxyClient), l.Key(NameFrontProxyClient))
			if strings.Contains(test.name, "front proxy") || strings.Contains(test.name, "insecure") {
				ensure(t, l, s)
			}
			test.do(t, l, &s)
			before := contents(t, l.Dir)
			_, err := Ensure(l, s)
			wantSame(t, l.Dir, before)
			if _, checked := Check(l, s); checked == nil || err == nil || checked.Error() != err.Error() {
				t.Errorf("Check = %v; want what Ensure says, %v", checked, err)
			}
			var m *Misfit
			if !errors.As(err, &m) {
				t.Fatalf("Ensure = %v, want a Misfit", err)
			}
			wantMisfit(t, l, err, test.files, test.want)
			wantNoSecret(t, err, before)
		})
	}
}

func wantMisfit(t *testing.T, l Layout, err error, files []string, want string) {
	t.Helper()
	for _, m := range misfits(err) {
		message := m.Error()
		lacks := func(file string) bool { return !strings.Contains(message, filepath.Join(l.Dir, file)) }
		if strings.Contains(message, want) && !slices.ContainsFunc(files, lacks) && strings.HasPrefix(message, filepath.Join(l.Dir, files[0])) {
			if strings.ContainsAny(message, "\n\t") || strings.Contains(message, "failed to") {
				t.Errorf("message %q is not one plain line", message)
			}
			return
		}
	}
	t.Errorf("got\n%v\nwant one of %q with %q", err, files, want)
}

// wantNoSecret looks for every long word of the directory in the error and the
// hints.
func wantNoSecret(t *testing.T, err error, files map[string]string) {
	t.Helper()
	text := err.Error()
	for _, m := range misfits(err) {
		text += m.Hint
	}
	for name, content := range files {
		for _, word := range strings.Fields(content) {
			if len(word) > 40 && !strings.Contains(word, "kube-controller-manager") && strings.Contains(text, word) {
				t.Errorf("error quotes the content of %s: %q", name, text)
			}
		}
	}
	if strings.Contains(text, "hunter2") {
		t.Errorf("error contains a secret: %q", text)
	}
}

func TestModeHint(t *testing.T) {
	l := fresh(t)
	os.Chmod(l.CAKey(), 0o644)
	_, err := Ensure(l, testSpec())
	if ms := misfits(err); len(ms) != 1 || ms[0].Hint != "chmod 600 "+l.CAKey() {
		t.Errorf("Misfits = %+v, want the chmod line", ms)
	}
}

// TestAllAtOnce: one start reports everything.
func TestAllAtOnce(t *testing.T) {
	l, s := fresh(t), testSpec()
	os.Chmod(l.CAKey(), 0o644)
	put(t, l.EncryptionConfig(), "")
	put(t, l.Key(NameKubernetes), get(t, l.Key(NameServiceAccount)))
	s.Server, s.RemoteServer = "127.0.0.1:6443", "http://x"
	s.Addresses = append(s.Addresses, "10.0.0.11:6443", "")
	_, err := Ensure(l, s)
	if got := len(misfits(err)); got != 3 {
		t.Errorf("%d misfits, want 3:\n%v", got, err)
	}
	if got := len(strings.Split(err.Error(), "\n")); got != 7 {
		t.Errorf("%d problems, want 7:\n%v", got, err)
	}
}

func TestDirectoryThatIsNone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	put(t, file, "")
	for _, dir := range []string{"", file} {
		for name, do := range map[string]func(Layout, Spec) (Report, error){"Ensure": Ensure, "Check": Check} {
			if _, err := do(Layout{Dir: dir}, testSpec()); err == nil || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s in %q = %v, want one error", name, dir, err)
			}
		}
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := Ensure(Layout{Dir: missing}, Spec{}); err == nil {
		t.Error("Ensure without a server = nil")
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("a refused Ensure has made the data directory")
	}
}

// TestUnreadable acts as another user, on one thread only, because root may read
// everything.
func TestUnreadable(t *testing.T) {
	dir, err := os.MkdirTemp("", "kthwd-pki")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	l := Layout{Dir: dir}
	ensure(t, l, testSpec())
	root := os.Geteuid() == 0
	if !root {
		os.Chmod(l.CAKey(), 0)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if root {
			syscall.Setfsuid(65534)
		}
		_, err := Check(l, testSpec())
		done <- err
	}()
	err = <-done
	wantMisfit(t, l, err, []string{"ca-key.pem"}, "not readable by kthwd, which runs as uid ")
	if ms := misfits(err); len(ms) == 0 || !strings.Contains(ms[0].Hint, "chown") {
		t.Errorf("hint of %v lacks chown", err)
	}
}

// TestFrozenSeconds: the ends of a lifetime belong to it, as for crypto/x509.
func TestFrozenSeconds(t *testing.T) {
	l, s := fresh(t), testSpec()
	ca, c := certificate(t, l.CA()), certificate(t, l.Cert(NameKubernetes)) // made in one second
	if !c.NotBefore.Equal(ca.NotBefore) {
		t.Fatalf("kubernetes.pem is valid from %v, ca.pem from %v", c.NotBefore, ca.NotBefore)
	}
	for _, test := range []struct {
		now time.Time
		ok  bool
	}{
		{c.NotBefore.Add(-time.Second), false}, {c.NotBefore, true}, {c.NotAfter, true}, {c.NotAfter.Add(time.Second), false},
	} {
		s.Now = at(test.now)
		if _, err := Ensure(l, s); (err == nil) != test.ok {
			t.Errorf("at %v: %v, want ok = %v", test.now, err, test.ok)
		}
	}
}

// misfits returns every Misfit in err, which may be joined or wrapped.
func misfits(err error) (found []*Misfit) {
	if wrapped := errors.Unwrap(err); wrapped != nil {
		return misfits(wrapped)
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			found = append(found, misfits(err)...)
		}
		return found
	}
	if m, ok := errors.AsType[*Misfit](err); ok {
		found = append(found, m)
	}
	return found
}

// TestExpiredCA follows the hint for a CA that has expired: its certificate is issued again for the same
// key, and nothing else is lost.
func TestExpiredCA(t *testing.T) {
	l := fresh(t)
	ca := loadPair(t, l, NameCA)
	again := func(from, to time.Time) {
		t.Helper()
		c := *ca.chain[0]
		c.NotBefore, c.NotAfter = from, to
		put(t, l.CA(), string(encodeCertificates(sign(t, &c, ca.key, pair{}).chain)))
	}
	again(noon.AddDate(-5, 0, 0), noon.AddDate(0, 0, -1))
	_, err := Check(l, testSpec())
	var expired *Misfit
	for _, m := range misfits(err) {
		if m.File == l.CA() {
			expired = m
		}
	}
	if expired == nil || !strings.Contains(expired.Hint, "the same key") {
		t.Fatalf("got %v", err)
	}
	again(noon, noon.AddDate(10, 0, 0))
	for name := range contents(t, l.Dir) {
		if strings.HasSuffix(name, ".kubeconfig") {
			remove(t, filepath.Join(l.Dir, name))
		}
	}
	before := contents(t, l.Dir)
	ensure(t, l, testSpec())
	for name, was := range before {
		if now := contents(t, l.Dir)[name]; now != was {
			t.Errorf("%s has changed", name)
		}
	}
	if report, err := Check(l, testSpec()); err != nil || len(report.Missing) > 0 {
		t.Errorf("%v, missing %v", err, report.Missing)
	}
}
