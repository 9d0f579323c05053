package pki

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestIssueNode(t *testing.T) {
	l, s := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}, testSpec()
	s.Now = nil // IssueNode uses the real time
	ensure(t, l, s)
	for name, dir := range map[string]string{"another directory": filepath.Join(t.TempDir(), "w1"), "the data directory": l.Dir} {
		t.Run(name, func(t *testing.T) {
			before := contents(t, l.Dir)
			created, err := IssueNode(l, dir, "w1", []string{"10.0.1.1", "w1.example.org"}, "https://10.0.0.20:6443")
			if err != nil || !slices.Equal(bases(created), []string{"w1-key.pem", "w1.pem", "w1.kubeconfig"}) {
				t.Fatalf("IssueNode = %q, %v", created, err)
			}
			if dir != l.Dir {
				wantSame(t, l.Dir, before)
			}
			wantNode(t, l, dir)
			made := contents(t, dir)
			if again, err := IssueNode(l, dir, "w1", []string{"10.0.1.1"}, "https://10.0.0.20:6443"); err != nil || len(again) > 0 {
				t.Errorf("IssueNode again = %q, %v; want nothing", again, err)
			}
			if _, err := IssueNode(l, dir, "w1", []string{"10.0.1.2"}, "https://10.0.0.20:6443"); len(misfits(err)) != 1 {
				t.Errorf("IssueNode for another address = %v, want a Misfit", err)
			}
			wantSame(t, dir, made)
		})
	}
}

func wantNode(t *testing.T, l Layout, dir string) {
	t.Helper()
	n := Layout{Dir: dir}
	c := certificate(t, n.Cert("w1"))
	if got, want := c.Subject.String(), "CN=system:node:w1,O=system:nodes"; got != want {
		t.Errorf("subject %s, want %s", got, want)
	}
	if got, want := strings.Join(sans(c), " "), "w1 w1.example.org 10.0.1.1"; got != want {
		t.Errorf("SANs %s, want %s", got, want)
	}
	for _, use := range serverAndClient {
		if _, err := c.Verify(x509.VerifyOptions{Roots: pool(t, l, NameCA), KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Errorf("%s: %v", useName(use), err)
		}
	}
	a, err := parseKubeconfig([]byte(get(t, n.Kubeconfig("w1"))), dir)
	if err != nil || a.server != "https://10.0.0.20:6443" || !a.client.chain[0].Equal(c) {
		t.Errorf("kubeconfig for %q, %v", a.server, err)
	}
	for path, want := range map[string]os.FileMode{n.Cert("w1"): modePublic, n.Key("w1"): modeSecret, n.Kubeconfig("w1"): modeSecret} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

func TestIssueNodeRefuses(t *testing.T) {
	l, s := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}, testSpec()
	s.Now = nil
	ensure(t, l, s)
	named, withName := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}, s
	withName.Addresses = append(slices.Clone(s.Addresses), "api.example.org")
	ensure(t, named, withName)
	keyless := Layout{Dir: t.TempDir()}
	put(t, keyless.CA(), get(t, l.CA()))
	const server = "https://10.0.0.20:6443"
	for _, test := range []struct {
		name, node, server, want string
		l                        Layout
		addresses                []string
	}{
		{"a name that is taken", "admin", server, `node name "admin"`, l, nil},
		{"the name of a key", "ca-key", server, `node name "ca-key"`, l, nil},
		{"a path", "../w1", server, `node name "../w1"`, l, nil},
		{"no name", "", server, `node name ""`, l, nil},
		{"capitals", "W1", server, `node name "W1"`, l, nil},
		{"a server without scheme", "w1", "10.0.0.20:6443", `server "10.0.0.20:6443": want`, l, nil},
		{"an address with a port", "w1", server, `address "10.0.1.1:10250"`, l, []string{"10.0.1.1:10250"}},
		{"the API server's name as the node's", "kubernetes.default.svc", server, `"kubernetes.default.svc": is a name of the API server`, l, nil},
		{"this machine as the node", "localhost", server, `"localhost": is a name of the API server`, l, nil},
		{"the API server's name as an address", "w1", server, `"Kubernetes": is a name of the API server`, l, []string{"Kubernetes"}},
		{"a balancer's name in kubernetes.pem", "w1", server, `is a name of the API server`, named, []string{"api.example.org"}},
		{"a loopback address", "w1", server, `"127.0.0.1": want one by which`, l, []string{"127.0.0.1"}},
		{"a wildcard", "w1", server, `"*.example.org": a wildcard`, l, []string{"*.example.org"}},
		{"an address that is none", "w1", server, `"999.1.1.1": want an IP address`, l, []string{"999.1.1.1"}},
		{"no CA", "w1", server, "ca.pem: missing", Layout{Dir: t.TempDir()}, nil},
		{"no CA key", "w1", server, "ca-key.pem: missing, but needed to issue", keyless, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "node")
			if _, err := IssueNode(test.l, dir, test.node, test.addresses, test.server); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("IssueNode = %v, want %q", err, test.want)
			}
			if _, err := os.Stat(dir); err == nil {
				t.Error("the directory has been made")
			}
		})
	}
}
