package pki

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/test/harness"
)

// testCluster is two controllers, the second with the CA's key, and a balancer.
func testCluster(dir string) Cluster {
	machine := func(name, server string, caKey bool) Machine {
		config := []byte("name: " + name + "\n")
		return Machine{
			Dir: filepath.Join(dir, name), Server: server, Admin: "https://10.0.0.20:6443", CAKey: caKey,
			ConfigName: "kthwd.yaml", Config: config,
			Fits: func(existing []byte) string {
				if bytes.HasPrefix(existing, config) {
					return ""
				}
				return "its name is another one"
			},
		}
	}
	return Cluster{
		Dir: filepath.Join(dir, "ca"), Admin: "https://10.0.0.20:6443",
		Addresses: []string{"10.0.0.11", "10.0.0.12", "10.0.0.20"},
		Spec:      Spec{ServiceIP: net.ParseIP("10.32.0.1")},
		Machines: []Machine{
			machine("c0", "https://127.0.0.1:6443", false),
			machine("c1", "https://127.0.0.1:6443", true),
			machine("lb", "", false),
		},
	}
}

func madeCluster(t *testing.T) Cluster {
	t.Helper()
	c := testCluster(t.TempDir())
	if _, err := EnsureCluster(c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCluster(t *testing.T) {
	c := testCluster(filepath.Join(t.TempDir(), "new", "cluster"))
	report, err := EnsureCluster(c)
	if err != nil || len(report.Kept)+len(report.Warnings)+len(report.Missing) > 0 {
		t.Fatalf("got %+v, %v, want files made only", report, err)
	}
	var got strings.Builder
	for _, path := range report.Created {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		name, _ := filepath.Rel(filepath.Dir(c.Dir), path)
		fmt.Fprintf(&got, "%s %s\n", info.Mode(), name)
	}
	harness.Golden(t, "testdata/cluster.golden", []byte(got.String()))

	for i, address := range []string{"10.0.0.11", "10.0.0.12"} {
		l := Layout{Dir: c.Machines[i].Dir}
		before := contents(t, l.Dir)
		spec := Spec{Addresses: []string{address}, Local: []string{address, "127.0.0.1"}, ServiceIP: c.Spec.ServiceIP, Server: "https://127.0.0.1:6443"}
		started, err := Ensure(l, spec)
		if err != nil || len(started.Created) > 0 {
			t.Errorf("a start in %s: got %+v, %v, want nothing made", l.Dir, started, err)
		}
		if lacksKey := slices.ContainsFunc(started.Warnings, func(w string) bool { return strings.Contains(w, "ca-key.pem: missing") }); lacksKey == c.Machines[i].CAKey {
			t.Errorf("a start in %s: got the warnings %q", l.Dir, started.Warnings)
		}
		wantSame(t, l.Dir, before)
	}
}

func TestSecondClusterChangesNothing(t *testing.T) {
	c := madeCluster(t)
	dir := filepath.Dir(c.Dir)
	before := contents(t, dir)
	report, err := EnsureCluster(c)
	if err != nil || len(report.Created) > 0 {
		t.Errorf("got %q made, %v, want nothing", report.Created, err)
	}
	wantSame(t, dir, before)

	// Files that an interrupted run lacks are copied, or made again.
	lost := filepath.Join(c.Machines[0].Dir, "kubernetes-key.pem")
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(c.Machines[2].Dir); err != nil {
		t.Fatal(err)
	}
	if _, err = EnsureCluster(c); err != nil {
		t.Fatal(err)
	}
	wantSame(t, dir, before)
}

func TestClusterMisfits(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, c *Cluster)
		want  []string // in the errors, each once
	}{
		{"another service account key", func(t *testing.T, c *Cluster) {
			put(t, filepath.Join(c.Machines[0].Dir, "service-account-key.pem"), get(t, filepath.Join(c.Dir, "admin-key.pem")))
		}, []string{"c0/service-account-key.pem: differs from …/ca/service-account-key.pem"}},
		{"the cluster's directory is gone", func(t *testing.T, c *Cluster) {
			if err := os.Rename(c.Dir, c.Dir+"-away"); err != nil {
				t.Fatal(err)
			}
		}, []string{"c0/ca.pem: exists without its original …/ca/ca.pem", "lb/ca.pem: exists without"}},
		{"one controller more", func(_ *testing.T, c *Cluster) {
			c.Addresses = append(c.Addresses, "10.0.0.13")
			c.Machines = append(c.Machines, c.Machines[0])
			c.Machines[3].Dir += "-new"
		}, []string{"ca/kubernetes.pem: not valid for 10.0.0.13, where it will be served"}},
		{"another balancer", func(_ *testing.T, c *Cluster) {
			c.Admin = "https://10.0.0.12:6443"
			c.Machines[0].Admin = c.Admin
		}, []string{"ca/admin.kubeconfig: its server is https://10.0.0.20:6443, want https://10.0.0.12:6443", "c0/admin.kubeconfig: its server is"}},
		{"another configuration", func(t *testing.T, c *Cluster) {
			put(t, filepath.Join(c.Machines[1].Dir, "kthwd.yaml"), "name: x\n")
		}, []string{"c1/kthwd.yaml: its name is another one"}},
		{"a key that is not asked for", func(_ *testing.T, c *Cluster) { c.Machines[1].CAKey = false },
			[]string{"c1/ca-key.pem: exists, although it is not requested"}},
		{"no kubeconfig", func(t *testing.T, c *Cluster) {
			put(t, filepath.Join(c.Machines[1].Dir, "kube-scheduler.kubeconfig"), "kind: Config\n")
		}, []string{`c1/kube-scheduler.kubeconfig: its current-context is not in it`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := madeCluster(t)
			tt.spoil(t, &c)
			dir := filepath.Dir(c.Dir)
			before := contents(t, dir)
			_, err := EnsureCluster(c)
			if err == nil {
				t.Fatal("got no error")
			}
			text := strings.ReplaceAll(err.Error(), dir, "…")
			for _, want := range tt.want {
				if strings.Count(text, want) != 1 {
					t.Errorf("want %q once in\n%s", want, text)
				}
			}
			wantSame(t, dir, before)
		})
	}
}
