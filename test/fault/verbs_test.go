package fault

import (
	"path/filepath"
	"testing"

	"kthwd/test/kthwtest"
)

// What a start would refuse of its flags, kthwd config and kthwd preflight refuse, too, with
// exit code 2. They write nothing.
func TestVerbsRefuseWhatAStartRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		args []string
		hint string
		part string
	}{
		{"a flag of kthwd", []string{"--secure-prot=1"}, "--secure-port", "--secure-prot"},
		{"a flag of a program", []string{"--kube-scheduler-arg=kube-api-qsp=1"}, "did you mean --kube-scheduler-arg=kube-api-qps?", "no such flag"},
		{"a value", []string{"--kube-apiserver-arg=storage-backend=mysql"}, "-", "--storage-backend invalid"},
		{"a file", []string{"--kube-apiserver-arg=audit-policy-file=/nowhere.yaml"}, "-", "/nowhere.yaml"},
		{"families", []string{"--service-cluster-ip-range=fd00::/112", "--advertise-address=192.0.2.7", "--cluster-cidr=fd01::/48"}, "-", "family"},
		{"a flag that kthwd relies on", []string{"--etcd-arg=data-dir=/x"}, "--etcd-data-dir", "kthwd sets this flag itself"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kthwtest.Turn(t, 1)
			for _, verb := range []string{"config", "preflight"} {
				parent := t.TempDir()
				before := tree(t, parent)
				c := kthwtest.Controller{Dir: filepath.Join(parent, "data"), Address: "127.0.0.1", Ports: kthwtest.FreePorts(t, "127.0.0.1")}
				o := runToEnd(t, nil, append(append([]string{verb, "--config="}, c.Args()...), tt.args...)...)
				o.check(t, 2, tt.hint, tt.part)
				if after := tree(t, parent); after != before {
					t.Errorf("%s: got %s, want nothing", verb, after)
				}
			}
		})
	}
}
