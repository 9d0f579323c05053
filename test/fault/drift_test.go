package fault

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// Settings that upstream reads only when a cluster is made, or that the cluster's objects and
// tokens were made with: another value is refused, or a finding names both.
func TestDrift(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDR: "10.200.7.0/24", PodCIDRs: []string{"10.200.7.0/24"}}}
	if _, err := c.Client(t).CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	stop(t, c, syscall.SIGTERM, 0)
	attempt{dir: c.Dir, ports: c.Ports, args: []string{"--kube-apiserver-arg=etcd-prefix=/other"}}.run(t).
		check(t, 1, "etcd-prefix", "nothing below /other/", "/registry/", "empty cluster")
	moved := attempt{dir: c.Dir, ports: c.Ports, args: []string{"--advertise-address=127.0.0.2"}}.run(t)
	if problems, hints := moved.errorLines(); moved.code != 1 || len(problems) != 2 || len(hints) == 0 {
		t.Errorf("another address: got exit code %d and:\n%s", moved.code, moved.stderr)
	}
	for _, want := range []string{"/kubernetes.pem: not valid for 127.0.0.2", "/etcd.pem: not valid for 127.0.0.2", "it is for localhost", "reissue it with this address"} {
		if !strings.Contains(moved.stderr, want) {
			t.Errorf("another address: %q is not in:\n%s", want, moved.stderr)
		}
	}
	c = again(t, c, kthwtest.Options{Args: []string{
		"--service-cluster-ip-range=10.96.0.0/16", "--cluster-cidr=10.244.0.0/16", "--kube-controller-manager-arg=cluster-name=other",
		"--kube-apiserver-arg=service-account-issuer=https://other.example", "--etcd-arg=initial-cluster-token=theirs",
	}})
	const ours = "https://kubernetes.default.svc.cluster.local"
	for _, want := range [][]string{
		{"service_range", "10.32.0.0/24", "10.96.0.0/16"},
		{"pod_range", "1 of 1", "10.244.0.0/16", "n1 with 10.200.7.0/24"},
		{"cluster_name", "--cluster-name is other", "was kubernetes"},
		{"cluster_name", "--initial-cluster-token is theirs", "was etcd-cluster-0"},
		{"token_issuer", "is https://other.example", "was " + ours},
	} {
		hasFinding(t, c, want[0], want[1:]...)
	}
	stop(t, c, syscall.SIGTERM, 0)

	// The remedy: both issuers are accepted, the other settings are as before.
	c = again(t, c, kthwtest.Options{Args: []string{
		"--kube-apiserver-arg=service-account-issuer=https://other.example", "--kube-apiserver-arg=service-account-issuer=" + ours,
	}})
	report, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		switch f.Kind {
		case "service_range", "pod_range", "cluster_name", "token_issuer":
			t.Errorf("after the remedy: got %+v", f)
		}
	}
}

// hasFinding fails the test if no finding of the kind has all parts.
func hasFinding(t *testing.T, c *kthwtest.Controller, kind string, parts ...string) {
	t.Helper()
	kthwtest.WaitFor(t, "a finding of kind "+kind, soon, func() error {
		report, err := c.Status()
		if err != nil {
			return err
		}
		for _, f := range report.Findings {
			lacks := f.Kind != kind
			for _, part := range parts {
				lacks = lacks || !strings.Contains(f.Text, part)
			}
			if !lacks {
				return nil
			}
		}
		return fmt.Errorf("got %+v, want one with %q", report.Findings, parts)
	})
}
