package cmdline_test

import (
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"

	"kthwd/appliance/advice"
	"kthwd/appliance/apiserver"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/controllers"
	"kthwd/appliance/etcdline"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

func TestUnknownFlag(t *testing.T) {
	const k8s, etcdDocs = "https://kubernetes.io/docs/reference/command-line-tools-reference/", "https://etcd.io/docs/v3.7/op-guide/configuration/"
	parsers := map[string]func([]program.Arg) error{
		program.Etcd: func(a []program.Arg) error {
			_, err := etcdline.Parse(a, embed.NewZapLoggerBuilder(zap.NewNop()))
			return err
		},
		program.APIServer:         func(a []program.Arg) error { _, err := apiserver.Parse(a, pki.ControllerNames{}); return err },
		program.ControllerManager: func(a []program.Arg) error { _, err := controllers.ParseManager(a); return err },
		program.Scheduler:         func(a []program.Arg) error { _, err := controllers.ParseScheduler(a); return err },
	}
	tests := []struct {
		program   string
		arg       program.Arg
		want, see string
	}{
		{program.Etcd, program.Arg{Key: "nonsense", Value: "1"}, "--etcd-arg=nonsense: etcd has no such flag in this version", etcdDocs},
		{program.APIServer, program.Arg{Key: "nonsense", Value: "1"}, "--kube-apiserver-arg=nonsense: kube-apiserver has no such flag in this version", k8s + "kube-apiserver/"},
		{program.ControllerManager, program.Arg{Key: "nonsense", Value: "1"}, "--kube-controller-manager-arg=nonsense: kube-controller-manager has no such flag in this version", k8s + "kube-controller-manager/"},
		{program.Scheduler, program.Arg{Key: "nonsense", Value: "1"}, "--kube-scheduler-arg=nonsense: kube-scheduler has no such flag in this version", k8s + "kube-scheduler/"},
		{program.APIServer, program.Arg{Key: "event-ttl", Value: "long"}, `--kube-apiserver-arg: invalid argument "long" for "--event-ttl" flag: time: invalid duration "long"`, k8s + "kube-apiserver/"},
		{program.Etcd, program.Arg{Key: "heartbeat-interval", Value: "long"}, `--etcd-arg: invalid value "long" for flag -heartbeat-interval: parse error`, etcdDocs},
	}
	for _, tt := range tests {
		t.Run(tt.program+" "+tt.arg.Key, func(t *testing.T) {
			checkHinted(t, parsers[tt.program]([]program.Arg{tt.arg}), tt.want, "see the flags of "+tt.program+" at "+tt.see)
		})
	}
}

// Underscores are dashes, as in the programs themselves.
func TestUnderscoresAreDashes(t *testing.T) {
	opts, err := apiserver.Parse([]program.Arg{{Key: "event_ttl", Value: "2h"}}, pki.ControllerNames{})
	if err != nil || opts.EventTTL.Hours() != 2 {
		t.Errorf("got %v, %v; want 2h", opts.EventTTL, err)
	}
}

// A flag that etcd has lost, and that nothing replaces, comes with advice.
func TestGoneFlag(t *testing.T) {
	_, err := etcdline.Parse([]program.Arg{{Key: "discovery", Value: "https://discovery.etcd.io/x"}}, embed.NewZapLoggerBuilder(zap.NewNop()))
	checkHinted(t, err, "--etcd-arg=discovery: etcd no longer has this flag", "etcd's public discovery service of version 2 is gone: name the members with --initial-cluster, or use --etcd-arg=discovery-endpoints and --etcd-arg=discovery-token")
}

// A feature gate that Kubernetes has lost is refused with its reason if it asks for what no
// version still does; and Kubernetes has really lost it.
func TestGoneGates(t *testing.T) {
	err := cmdline.CheckGates(map[string][]program.Arg{program.APIServer: {{Key: "feature-gates", Value: "SidecarContainers=false"}}})
	checkHinted(t, err, "--kube-apiserver-arg=feature-gates=SidecarContainers=false: this version has no such feature gate, its feature is always on", "leave it out")
	known := utilfeature.DefaultMutableFeatureGate.GetAll()
	if _, has := known["AllAlpha"]; !has {
		t.Fatalf("%d feature gates are known, and AllAlpha is not among them", len(known))
	}
	for name, instead := range cmdline.GoneGates {
		if _, has := known[featuregate.Feature(name)]; has {
			t.Errorf("%s is a feature gate", name)
		}
		if _, has := known[featuregate.Feature(instead)]; instead != "" && !has {
			t.Errorf("%s is no feature gate, and takes the place of %s", instead, name)
		}
	}
}

func TestCheckGates(t *testing.T) {
	gates := func(v string) []program.Arg { return []program.Arg{{Key: "feature-gates", Value: v}} }
	tests := []struct {
		name            string
		api, kcm, sched []program.Arg
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
		{"another version", []program.Arg{{Key: "emulated-version", Value: "1.35"}}, []program.Arg{{Key: "emulated-version", Value: "1.36"}}, nil,
			[]string{"kube-apiserver: emulated-version=1.35, but kube-controller-manager: emulated-version=1.36"}},
		{"not a gate", []program.Arg{{Key: "v", Value: "1"}}, []program.Arg{{Key: "v", Value: "2"}}, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := cmdline.CheckGates(map[string][]program.Arg{program.APIServer: tt.api, program.ControllerManager: tt.kcm, program.Scheduler: tt.sched})
			got := ""
			if err != nil {
				got = err.Error()
			}
			if want := strings.Join(tt.want, "\n"); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			hint, _ := advice.Of(err)
			if err != nil && !strings.Contains(hint, "whole process") {
				t.Errorf("got hint %q, want one on the whole process", hint)
			}
		})
	}
}

func TestWithoutGates(t *testing.T) {
	args := []program.Arg{{Key: "feature-gates", Value: "A=true"}, {Key: "v", Value: "2"}, {Key: "emulated-version", Value: "1.35"}, {Key: "profiling", Value: "false"}}
	if got, want := strings.Join(program.Render(cmdline.WithoutGates(args)), " "), "--v=2 --profiling=false"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if len(args) != 4 || args[0].Key != "feature-gates" {
		t.Errorf("the argument was changed: %v", args)
	}
}

// checkHinted compares the text of an error and its advice; "" means no error.
func checkHinted(t *testing.T, err error, want, hint string) {
	t.Helper()
	if err == nil {
		if want != "" {
			t.Errorf("got no error, want %q", want)
		}
		return
	}
	if err.Error() != want {
		t.Errorf("got error %q, want %q", err, want)
	}
	if got, ok := advice.Of(err); !ok || got != hint {
		t.Errorf("got hint %q, want %q", got, hint)
	}
}
