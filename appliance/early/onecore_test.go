package early

import (
	"strings"
	"testing"
)

func TestStays(t *testing.T) {
	for line, want := range map[string]bool{
		"kthwd":                                 true, // a role may come from the configuration file
		"kthwd --role=lb":                       true,
		"kthwd --config /etc/kthwd.yaml":        true,
		"/usr/lib/kthwd/bin/kube-apiserver -v2": true,
		"kthwd program etcd":                    true,
		"kthwd version":                         false,
		"kthwd try -- make test":                false,
		"kthwd kubectl get nodes":               false,
		"kubectl get nodes":                     false,
		"kthwd program etcdctl member list":     false,
		"kthwd __complete status ":              false,
	} {
		if got := stays(strings.Split(line, " ")); got != want {
			t.Errorf("%s: got %t, want %t", line, got, want)
		}
	}
}
