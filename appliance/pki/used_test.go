package pki

import (
	"os"
	"path/filepath"
	"testing"
)

func TestUsed(t *testing.T) {
	dir := t.TempDir()
	l := Layout{Dir: dir}
	if _, err := Ensure(l, testSpec()); err != nil {
		t.Fatal(err)
	}
	ca, _ := os.ReadFile(l.CA())
	leaf, _ := os.ReadFile(l.Cert(NameKubernetes))
	put := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		path    string
		want    []string // subjects
		problem bool
	}{
		{path: l.CA(), want: []string{"CN=Kubernetes,O=Kubernetes"}},
		{path: l.Cert(NameKubernetes), want: []string{"CN=kubernetes,O=Kubernetes"}},
		{path: put("chain.pem", append(append([]byte{}, leaf...), ca...)), want: []string{"CN=kubernetes,O=Kubernetes"}},
		{path: put("twice.pem", append(append([]byte{}, ca...), ca...)), want: []string{"CN=Kubernetes,O=Kubernetes"}},
		{path: l.Kubeconfig(NameScheduler), want: []string{"CN=system:kube-scheduler,O=system:kube-scheduler", "CN=Kubernetes,O=Kubernetes"}},
		{path: put("token.kubeconfig", []byte("kind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: a, user: a}}]\nclusters: [{name: a, cluster: {server: https://a}}]\nusers: [{name: a, user: {token: x}}]\n"))},
		{path: filepath.Join(dir, "missing.pem"), problem: true},
		{path: put("damaged.pem", []byte("-----BEGIN CERTIFICATE-----\n")), problem: true},
		{path: put("damaged.kubeconfig", []byte("{")), problem: true},
	} {
		got := Used(tt.path)
		if tt.problem {
			if len(got) != 1 || got[0].Problem == "" {
				t.Errorf("%s: got %+v, want a problem", tt.path, got)
			}
			continue
		}
		var subjects []string
		for _, e := range got {
			subjects = append(subjects, e.Subject)
			if e.NotAfter.IsZero() || e.Problem != "" {
				t.Errorf("%s: got %+v", tt.path, e)
			}
		}
		if len(subjects) != len(tt.want) {
			t.Errorf("%s: got %v, want %v", tt.path, subjects, tt.want)
			continue
		}
		for i := range subjects {
			if subjects[i] != tt.want[i] {
				t.Errorf("%s: got %v, want %v", tt.path, subjects, tt.want)
			}
		}
	}
}
