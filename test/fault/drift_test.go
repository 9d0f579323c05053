package fault

import (
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// Settings that upstream reads only when a cluster is made.
func TestDrift(t *testing.T) {
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{})
	stop(t, c, syscall.SIGTERM, 0)
	attempt{dir: c.Dir, ports: c.Ports, args: []string{"--kube-apiserver-arg=etcd-prefix=/other"}}.run(t).
		check(t, 1, "etcd-prefix", "nothing below /other/", "/registry/", "empty cluster")
	c = again(t, c, kthwtest.Options{Args: []string{"--service-cluster-ip-range=10.96.0.0/16"}})
	report, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		if strings.Contains(f.Text, "10.32.0.0/24") && strings.Contains(f.Text, "10.96.0.0/16") {
			return
		}
	}
	t.Errorf("findings: got %+v, want one that names both ranges", report.Findings)
}
