package appliance

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"kthwd/appliance/advice"
	"kthwd/appliance/apiserver"
	"kthwd/appliance/config"
	"kthwd/appliance/controllers"
	"kthwd/appliance/etcdline"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/test/harness"
)

// silent keeps etcd from making a logger of its own.
var silent = embed.NewZapLoggerBuilder(zap.NewNop())

// fixed is the default configuration on a machine that is the same everywhere.
func fixed() config.Controller {
	c := config.Default().Controller
	c.Name, c.AdvertiseAddress = "controller-0", "10.240.0.10"
	return c
}

// The flag sets of the four programs are the guide's unit files: every change of
// one shows here.
func TestArgs(t *testing.T) {
	c := fixed()
	local := c
	local.BindAddress, local.AdvertiseAddress = "127.0.0.1", "127.0.0.1"
	of3 := c
	of3.InitialCluster = []string{"controller-0=10.240.0.10", "controller-1=10.240.0.11", "controller-2=10.240.0.12"}
	cis := c
	cis.Profile = config.ProfileCIS
	const socket = "/var/lib/kubernetes/run/etcd.sock"
	for _, tt := range []struct {
		name string
		args []program.Arg
	}{
		{program.Etcd, program.EtcdArgs(c, c.Layout(), socket)},
		{program.APIServer, program.APIServerArgs(c, c.Layout(), socket)},
		{program.ControllerManager, program.ControllerManagerArgs(c, c.Layout())},
		{program.Scheduler, program.SchedulerArgs(c, c.Layout())},
		{program.Etcd + "-cluster", program.EtcdArgs(of3, of3.Layout(), socket)},
		{program.Etcd + "-local", program.EtcdArgs(local, c.Layout(), socket)},
		{program.APIServer + "-local", program.APIServerArgs(local, c.Layout(), socket)},
		{program.Etcd + "-cis", program.EtcdArgs(cis, c.Layout(), socket)},
		{program.APIServer + "-cis", program.APIServerArgs(cis, c.Layout(), socket)},
		{program.ControllerManager + "-cis", program.ControllerManagerArgs(cis, c.Layout())},
		{program.Scheduler + "-cis", program.SchedulerArgs(cis, c.Layout())},
	} {
		t.Run(tt.name, func(t *testing.T) {
			harness.Golden(t, filepath.Join("testdata", "args", tt.name+".golden"), []byte(strings.Join(program.Render(tt.args), "\n")+"\n"))
		})
	}
}

// Upstream's own parsers take what kthwd gives them.
func TestArgsParse(t *testing.T) {
	c := fixed()
	if _, err := etcdline.Parse(program.EtcdArgs(c, c.Layout(), "/run/etcd.sock"), silent); err != nil {
		t.Error(err)
	}
	if _, err := apiserver.Parse(program.APIServerArgs(c, c.Layout(), "/run/etcd.sock"), pki.ControllerNames{}); err != nil {
		t.Error(err)
	}
	if _, err := controllers.ParseManager(program.ControllerManagerArgs(c, c.Layout())); err != nil {
		t.Error(err)
	}
	if _, err := controllers.ParseScheduler(program.SchedulerArgs(c, c.Layout())); err != nil {
		t.Error(err)
	}
}

func TestNoFlagTwice(t *testing.T) {
	c := fixed()
	for _, args := range [][]program.Arg{program.EtcdArgs(c, c.Layout(), ""), program.APIServerArgs(c, c.Layout(), ""), program.ControllerManagerArgs(c, c.Layout()), program.SchedulerArgs(c, c.Layout())} {
		seen := map[string]bool{}
		for _, a := range args {
			if seen[a.Key] {
				t.Errorf("--%s is there twice", a.Key)
			}
			seen[a.Key] = true
		}
	}
}

func TestWithSigner(t *testing.T) {
	args := []program.Arg{{Key: "cluster-signing-cert-file", Value: "/d/ca.pem"}, {Key: "cluster-signing-key-file", Value: "/d/ca-key.pem"}, {Key: "root-ca-file", Value: "/d/ca.pem"}}
	for signer, want := range map[string]string{
		"":               "--root-ca-file=/d/ca.pem",
		"/r/signing.pem": "--cluster-signing-cert-file=/r/signing.pem --cluster-signing-key-file=/d/ca-key.pem --root-ca-file=/d/ca.pem",
	} {
		if got := strings.Join(program.Render(program.WithSigner(slices.Clone(args), signer)), " "); got != want {
			t.Errorf("signer %q: got %q, want %q", signer, got, want)
		}
	}
}

func TestMerge(t *testing.T) {
	ours := []program.Arg{{Key: "name", Value: "c0"}, {Key: "v", Value: "0"}, {Key: "plugins", Value: "a,b"}}
	tests := []struct {
		name      string
		users     []string
		want      string
		overrides int
	}{
		{"nothing", nil, "--name=c0 --v=0 --plugins=a,b", 0},
		{"something else", []string{"x=1"}, "--name=c0 --v=0 --plugins=a,b --x=1", 0},
		{"a value replaced", []string{"v=4"}, "--name=c0 --plugins=a,b --v=4", 1},
		{"a list replaced, not added to", []string{"plugins=c"}, "--name=c0 --v=0 --plugins=c", 1},
		{"a list given twice", []string{"plugins=c", "plugins=d"}, "--name=c0 --v=0 --plugins=c --plugins=d", 1},
		{"the same value is no override", []string{"--v=0"}, "--name=c0 --plugins=a,b --v=0", 0},
		{"a switch", []string{"--profiling"}, "--name=c0 --v=0 --plugins=a,b --profiling=true", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, overrides := program.Merge("etcd", ours, program.ParseUser(tt.users))
			if all := strings.Join(program.Render(got), " "); all != tt.want {
				t.Errorf("got %s, want %s", all, tt.want)
			}
			if len(overrides) != tt.overrides {
				t.Errorf("overrides: got %v, want %d", overrides, tt.overrides)
			}
		})
	}
}

func TestOwnedFlags(t *testing.T) {
	ours := program.APIServerArgs(fixed(), fixed().Layout(), "/run/etcd.sock")
	tests := []struct {
		name, program, arg string
		kept               bool
		warning, err, hint string
	}{
		{"free", program.APIServer, "event-ttl=2h", true, "", "", ""},
		{"owned, another value", program.APIServer, "secure-port=1", false, "", "--kube-apiserver-arg=secure-port=1: kthwd sets this flag itself", "set --secure-port"},
		{"owned, with underscores", program.APIServer, "--secure_port=1", false, "", "--kube-apiserver-arg=secure-port=1: kthwd sets this flag itself", "set --secure-port"},
		{"owned, kthwd's value", program.APIServer, "secure-port=6443", true, "", "", ""},
		{"owned, the guide's value cannot be kept", program.APIServer, "etcd-servers=https://10.240.0.10:2379", false,
			"kube-apiserver: --etcd-servers=https://10.240.0.10:2379 dropped: a kthwd API server uses the member beside it", "", ""},
		{"another program's", program.Scheduler, "secure-port=1", false, "", "--kube-scheduler-arg=secure-port=1: kthwd sets this flag itself", "set --scheduler-port"},
		{"would exit the process", program.Scheduler, "write-config-to=/x", false, "", "--kube-scheduler-arg=write-config-to=/x: kthwd sets this flag itself", "upstream's code exits the process there"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kept, warnings, errs := program.CheckOwned(tt.program, ours, program.ParseUser([]string{tt.arg}))
			if (len(kept) == 1) != tt.kept || strings.Join(warnings, "") != tt.warning {
				t.Errorf("got kept %v, warnings %q; want %v, %q", kept, warnings, tt.kept, tt.warning)
			}
			checkHinted(t, errors.Join(errs...), tt.err, tt.hint)
		})
	}
}

// checkHinted compares the text of an error and of its advice; "" wants none.
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

// What the owned flags say must be flags that the programs really have.
func TestOwnedFlagsExist(t *testing.T) {
	for name, keys := range program.Owned {
		for key := range keys {
			args := []program.Arg{{Key: key, Value: ""}}
			var err error
			switch name {
			case program.Etcd:
				_, err = etcdline.Parse(append(program.EtcdArgs(fixed(), fixed().Layout(), "/s"), args...), silent)
			case program.APIServer:
				_, err = apiserver.Parse(args, pki.ControllerNames{})
			case program.ControllerManager:
				_, err = controllers.ParseManager(args)
			case program.Scheduler:
				_, err = controllers.ParseScheduler(args)
			}
			// log-outputs and config-file are etcd's, though not in embed's own set.
			if err != nil && strings.Contains(err.Error(), "no such flag") && key != "config-file" {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
