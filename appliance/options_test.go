package appliance

import (
	"errors"
	"strings"
	"testing"

	"kthwd/appliance/pki"
)

func TestUnknownFlag(t *testing.T) {
	const k8s, etcd = "https://kubernetes.io/docs/reference/command-line-tools-reference/", "https://etcd.io/docs/v3.6/op-guide/configuration/"
	parsers := map[string]func([]arg) error{
		nameEtcd:              func(a []arg) error { _, err := parseEtcd(a, silent); return err },
		nameAPIServer:         func(a []arg) error { _, err := parseAPIServer(a, pki.ControllerNames{}); return err },
		nameControllerManager: func(a []arg) error { _, err := parseControllerManager(a); return err },
		nameScheduler:         func(a []arg) error { _, err := parseScheduler(a); return err },
	}
	tests := []struct {
		program   string
		arg       arg
		want, see string
	}{
		{nameEtcd, arg{"nonsense", "1"}, "--etcd-arg=nonsense: etcd has no such flag in this version", etcd},
		{nameAPIServer, arg{"nonsense", "1"}, "--kube-apiserver-arg=nonsense: kube-apiserver has no such flag in this version", k8s + "kube-apiserver/"},
		{nameControllerManager, arg{"nonsense", "1"}, "--kube-controller-manager-arg=nonsense: kube-controller-manager has no such flag in this version", k8s + "kube-controller-manager/"},
		{nameScheduler, arg{"nonsense", "1"}, "--kube-scheduler-arg=nonsense: kube-scheduler has no such flag in this version", k8s + "kube-scheduler/"},
		{nameAPIServer, arg{"event-ttl", "long"}, `--kube-apiserver-arg: invalid argument "long" for "--event-ttl" flag: time: invalid duration "long"`, k8s + "kube-apiserver/"},
		{nameEtcd, arg{"heartbeat-interval", "long"}, `--etcd-arg: invalid value "long" for flag -heartbeat-interval: parse error`, etcd},
	}
	for _, tt := range tests {
		t.Run(tt.program+" "+tt.arg.key, func(t *testing.T) {
			checkHinted(t, parsers[tt.program]([]arg{tt.arg}), tt.want, "see the flags of "+tt.program+" at "+tt.see)
		})
	}
}

// Underscores are dashes, as in the programs themselves.
func TestUnderscoresAreDashes(t *testing.T) {
	opts, err := parseAPIServer([]arg{{"event_ttl", "2h"}}, pki.ControllerNames{})
	if err != nil || opts.EventTTL.Hours() != 2 {
		t.Errorf("got %v, %v; want 2h", opts.EventTTL, err)
	}
}

func TestCheckGates(t *testing.T) {
	gates := func(v string) []arg { return []arg{{"feature-gates", v}} }
	tests := []struct {
		name            string
		api, kcm, sched []arg
		want            []string // of the errors
	}{
		{"none", nil, nil, nil, nil},
		{"one", gates("A=true"), nil, nil, nil},
		{"the same everywhere", gates("A=true,B=false"), gates("B=false"), gates("A=true"), nil},
		{"different ones", gates("A=true"), gates("B=true"), gates("C=false"), nil},
		{"one differs", gates("A=true"), nil, gates("A=false"), []string{"kube-apiserver: A=true, but kube-scheduler: A=false"}},
		{"two differ", gates("A=true,B=true"), gates("A=false"), gates("B=false"), []string{
			"kube-apiserver: A=true, but kube-controller-manager: A=false", "kube-apiserver: B=true, but kube-scheduler: B=false"}},
		{"prefixed", gates("kube:A=true"), gates("A=false"), nil, []string{"kube-apiserver: A=true, but kube-controller-manager: A=false"}},
		{"another version", []arg{{"emulated-version", "1.35"}}, []arg{{"emulated-version", "1.36"}}, nil,
			[]string{"kube-apiserver: emulated-version=1.35, but kube-controller-manager: emulated-version=1.36"}},
		{"not a gate", []arg{{"v", "1"}}, []arg{{"v", "2"}}, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := checkGates(map[string][]arg{nameAPIServer: tt.api, nameControllerManager: tt.kcm, nameScheduler: tt.sched})
			got := ""
			if err != nil {
				got = err.Error()
			}
			if want := strings.Join(tt.want, "\n"); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			var h *hinted
			if err != nil && (!errors.As(err, &h) || !strings.Contains(h.Hint(), "whole process")) {
				t.Errorf("got hint %v, want one on the whole process", h)
			}
		})
	}
}

func TestWithoutGates(t *testing.T) {
	args := []arg{{"feature-gates", "A=true"}, {"v", "2"}, {"emulated-version", "1.35"}, {"profiling", "false"}}
	if got, want := strings.Join(render(withoutGates(args)), " "), "--v=2 --profiling=false"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if len(args) != 4 || args[0].key != "feature-gates" {
		t.Errorf("the argument was changed: %v", args)
	}
}
