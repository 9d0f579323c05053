package names

import (
	"slices"
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	for _, c := range []struct {
		line, name, args string
		find             bool
		own              string
	}{
		{line: ""},
		{line: "kthwd"},
		{line: "kthwd status"},
		{line: "kthwd --role=controller"},
		{line: "/usr/bin/kthwd-kubectl get nodes"},
		{line: "kubectl", name: "kubectl", args: "kubectl"},
		{line: "/usr/lib/kthwd/bin/etcd --version", name: "etcd", args: "/usr/lib/kthwd/bin/etcd --version"},
		{line: "kube-apiserver program etcd", name: "kube-apiserver", args: "kube-apiserver program etcd"},
		{line: "kthwd program"},
		{line: "kthwd program --help"},
		{line: "kthwd program kubelet"},
		{line: "kthwd --data-dir=/a program etcd"},
		{line: "kthwd program etcdctl get --data-dir=/a", name: "etcdctl", args: "etcdctl get --data-dir=/a"},
		{line: "kthwd program kubectl get nodes", name: "kubectl", args: "kubectl get nodes"},
		{line: "kthwd kubectl", name: "kubectl", args: "kubectl", find: true},
		{line: "kthwd kubectl --help", name: "kubectl", args: "kubectl --help", find: true},
		{line: "kthwd kubectl --data-dir=/a get nodes", name: "kubectl", args: "kubectl get nodes", find: true, own: "--data-dir=/a"},
		{line: "kthwd --config /a kubectl --data-dir b get --data-dir=c", name: "kubectl", args: "kubectl get --data-dir=c", find: true, own: "--config /a --data-dir b"},
		{line: "kthwd kubectl --data-dir", name: "kubectl", args: "kubectl", find: true, own: "--data-dir"},
		{line: "kthwd --log-level=debug kubectl get nodes"},
		{line: "kthwd help kubectl"},
		{line: "kthwd __complete kubectl"},
		{line: "kthwd __complete program kube"},
		{line: "kthwd __complete kubectl get po", name: "kubectl", args: "kubectl __complete get po", find: true},
		{line: "kthwd __completeNoDesc program etcdctl ge", name: "etcdctl", args: "etcdctl __completeNoDesc ge"},
	} {
		got := Of(strings.Fields(c.line))
		if got.Name != c.name || strings.Join(got.Args, " ") != c.args || got.Find != c.find || strings.Join(got.Own, " ") != c.own {
			t.Errorf("%q: got %+v, want %+v", c.line, got, c)
		}
	}
	if !slices.IsSorted(All) {
		t.Errorf("got %q, want the order of the alphabet", All)
	}
}

func TestKubectlsCommandLine(t *testing.T) {
	for line, want := range map[string]struct{ names, needs bool }{
		"":                               {false, false},
		"get nodes":                      {false, true},
		"get nodes --kubeconfig=x":       {true, true},
		"--kubeconfig x get nodes":       {true, true},
		"exec p -- sh --kubeconfig=x":    {false, true},
		"exec p -- sh --help":            {false, true},
		"get --help":                     {false, false},
		"version":                        {false, true},
		"version --client":               {false, false},
		"version --client=true -o json":  {false, false},
		"completion bash":                {false, false},
		"__complete get po":              {false, false},
		"config view":                    {false, true},
		"-n kube-system get pods":        {false, true},
		"get pods -l app=completion":     {false, true},
		"annotate pod p --overwrite x=y": {false, true},
	} {
		args := strings.Fields(line)
		if got := NamesKubeconfig(args); got != want.names {
			t.Errorf("NamesKubeconfig(%q): got %v", line, got)
		}
		if got := NeedsCluster(args); got != want.needs {
			t.Errorf("NeedsCluster(%q): got %v", line, got)
		}
	}
}
