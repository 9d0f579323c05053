package pki

import (
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestIssueUser(t *testing.T) {
	l, s := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}, testSpec()
	s.Now = nil // IssueUser uses the real time
	ensure(t, l, s)
	before := contents(t, l.Dir)
	from := time.Now().Add(time.Minute).Truncate(time.Second)
	u := User{Name: "jane", Groups: []string{"developers", "a, b"}, Life: time.Hour, From: from, Server: "https://10.0.1.48:6443"}
	made, err := IssueUser(l, u)
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, l.Dir, before)
	c := made.Cert
	if c.Subject.CommonName != "jane" || !slices.Equal(slices.Sorted(slices.Values(c.Subject.Organization)), slices.Sorted(slices.Values(u.Groups))) || len(sans(c)) > 0 {
		t.Errorf("got %s with the names %q", c.Subject, sans(c))
	}
	if life := time.Until(c.NotAfter); life > time.Hour || life < 50*time.Minute || !c.NotBefore.Equal(from) {
		t.Errorf("got a certificate from %v until %v, want from %v for an hour", c.NotBefore, c.NotAfter, from)
	}
	for use, want := range map[x509.ExtKeyUsage]bool{x509.ExtKeyUsageClientAuth: true, x509.ExtKeyUsageServerAuth: false} {
		_, err := c.Verify(x509.VerifyOptions{Roots: pool(t, l, NameCA), KeyUsages: []x509.ExtKeyUsage{use}, CurrentTime: from})
		if (err == nil) != want {
			t.Errorf("use %v: got %v, want it to be good: %v", use, err, want)
		}
	}
	a, err := parseKubeconfig(made.Data, "")
	if err != nil || a.server != u.Server || a.client.chain[0].SerialNumber.Cmp(c.SerialNumber) != 0 || len(a.cas) != 1 {
		t.Errorf("kubeconfig: got %+v, %v", a.server, err)
	}
	end, err := EndOfCA(l)
	if err != nil {
		t.Fatal(err)
	}
	u.Life = time.Until(end) + time.Hour
	if _, err := IssueUser(l, u); len(misfits(err)) != 1 || !strings.Contains(err.Error(), "ends on") {
		t.Errorf("longer than the CA: got %v", err)
	}
	u.Life = time.Hour
	if err := os.Remove(l.CAKey()); err != nil {
		t.Fatal(err)
	}
	if _, err := IssueUser(l, u); !errors.Is(err, ErrNoCAKey) {
		t.Errorf("without the CA's key: got %v, want ErrNoCAKey", err)
	}
}

func TestUserCheck(t *testing.T) {
	for _, tt := range []struct {
		name   string
		groups []string
		file   string
		want   string
	}{
		{"jane", []string{"developers"}, "jane.kubeconfig", ""},
		{"jane@example.org", nil, "jane@example.org.kubeconfig", ""},
		{"Jürgen Ähm", nil, "", ""},
		{"a/b", nil, "", ""},
		{".hidden", nil, "", ""},
		{"", nil, "", "want a name"},
		{" jane", nil, "", "want a name"},
		{"ja\nne", nil, "", "can be printed"},
		{"ja\xffne", nil, "", "can be printed"},
		{strings.Repeat("a", 65), nil, strings.Repeat("a", 65) + ".kubeconfig", "65 bytes"},
		{"system:admin", nil, "", "Kubernetes' own"},
		{"kubernetes", nil, "kubernetes.kubeconfig", "control plane itself"},
		{"kthwd-health", nil, "kthwd-health.kubeconfig", "control plane itself"},
		{"super-admin", nil, "super-admin.kubeconfig", "control plane itself"},
		{"jane", []string{"system:masters"}, "jane.kubeconfig", "for an emergency"},
		{"jane", []string{"ok", "system:nodes"}, "jane.kubeconfig", "Kubernetes' own"},
		{"jane", []string{""}, "jane.kubeconfig", "want a name"},
	} {
		u := User{Name: tt.name, Groups: tt.groups, Life: time.Hour}
		if err := u.Check(); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q in %q: got %v, want %q", tt.name, tt.groups, err, tt.want)
		}
		if got := u.KubeconfigName(); got != tt.file {
			t.Errorf("file of %q: got %q, want %q", tt.name, got, tt.file)
		}
	}
	if err := (User{Name: "jane", Life: time.Second}).Check(); err == nil {
		t.Error("a life of a second: got no error")
	}
}
