package appliance

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// silent keeps etcd from making a logger of its own.
var silent = embed.NewZapLoggerBuilder(zap.NewNop())

// fixed is the default configuration on a machine that is the same everywhere.
func fixed() config.Controller {
	c := config.Default().Controller
	c.Name, c.AdvertiseAddress = "controller-0", "10.240.0.10"
	return c
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s\n(go test ./appliance -update rewrites it)", path, got, want)
	}
}

// The flag sets of the four programs are the guide's unit files: every change of
// one shows here.
func TestArgs(t *testing.T) {
	c := fixed()
	local := c
	local.BindAddress, local.AdvertiseAddress = "127.0.0.1", "127.0.0.1"
	of3 := c
	of3.InitialCluster = []string{"controller-0=10.240.0.10", "controller-1=10.240.0.11", "controller-2=10.240.0.12"}
	const socket = "/var/lib/kubernetes/run/etcd.sock"
	for _, tt := range []struct {
		name string
		args []arg
	}{
		{nameEtcd, etcdArgs(c, c.Layout(), socket)},
		{nameAPIServer, apiserverArgs(c, c.Layout(), socket)},
		{nameControllerManager, controllerManagerArgs(c, c.Layout())},
		{nameScheduler, schedulerArgs(c, c.Layout())},
		{nameEtcd + "-cluster", etcdArgs(of3, of3.Layout(), socket)},
		{nameEtcd + "-local", etcdArgs(local, c.Layout(), socket)},
		{nameAPIServer + "-local", apiserverArgs(local, c.Layout(), socket)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			golden(t, filepath.Join("args", tt.name+".golden"), strings.Join(render(tt.args), "\n")+"\n")
		})
	}
}

// Upstream's own parsers take what kthwd gives them.
func TestArgsParse(t *testing.T) {
	c := fixed()
	if _, err := parseEtcd(etcdArgs(c, c.Layout(), "/run/etcd.sock"), silent); err != nil {
		t.Error(err)
	}
	if _, err := parseAPIServer(apiserverArgs(c, c.Layout(), "/run/etcd.sock"), pki.ControllerNames{}); err != nil {
		t.Error(err)
	}
	if _, err := parseControllerManager(controllerManagerArgs(c, c.Layout())); err != nil {
		t.Error(err)
	}
	if _, err := parseScheduler(schedulerArgs(c, c.Layout())); err != nil {
		t.Error(err)
	}
}

func TestNoFlagTwice(t *testing.T) {
	c := fixed()
	for _, args := range [][]arg{etcdArgs(c, c.Layout(), ""), apiserverArgs(c, c.Layout(), ""), controllerManagerArgs(c, c.Layout()), schedulerArgs(c, c.Layout())} {
		seen := map[string]bool{}
		for _, a := range args {
			if seen[a.key] {
				t.Errorf("--%s is there twice", a.key)
			}
			seen[a.key] = true
		}
	}
}

func TestWithoutMissingKey(t *testing.T) {
	l := pki.Layout{Dir: t.TempDir()}
	args := []arg{{"cluster-signing-cert-file", l.CA()}, {"cluster-signing-key-file", l.CAKey()}, {"root-ca-file", l.CA()}}
	if got, want := render(withoutMissingKey(slices.Clone(args), l)), "--root-ca-file="+l.CA(); strings.Join(got, " ") != want {
		t.Errorf("without the key: got %q, want %q", got, want)
	}
	if err := os.WriteFile(l.CAKey(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := withoutMissingKey(slices.Clone(args), l); !slices.Equal(got, args) {
		t.Errorf("with the key: got %q, want all three", got)
	}
}

func TestMerge(t *testing.T) {
	ours := []arg{{"name", "c0"}, {"v", "0"}, {"plugins", "a,b"}}
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
			got, overrides := merge("etcd", ours, parseUserArgs(tt.users))
			if all := strings.Join(render(got), " "); all != tt.want {
				t.Errorf("got %s, want %s", all, tt.want)
			}
			if len(overrides) != tt.overrides {
				t.Errorf("overrides: got %v, want %d", overrides, tt.overrides)
			}
		})
	}
}

func TestOwnedFlags(t *testing.T) {
	ours := apiserverArgs(fixed(), fixed().Layout(), "/run/etcd.sock")
	tests := []struct {
		name, program, arg string
		kept               bool
		warning, err, hint string
	}{
		{"free", nameAPIServer, "event-ttl=2h", true, "", "", ""},
		{"owned, another value", nameAPIServer, "secure-port=1", false, "", "--kube-apiserver-arg=secure-port=1: kthwd sets this flag itself", "set --secure-port"},
		{"owned, with underscores", nameAPIServer, "--secure_port=1", false, "", "--kube-apiserver-arg=secure-port=1: kthwd sets this flag itself", "set --secure-port"},
		{"owned, kthwd's value", nameAPIServer, "secure-port=6443", true, "", "", ""},
		{"owned, the guide's value cannot be kept", nameAPIServer, "etcd-servers=https://10.240.0.10:2379", false,
			"kube-apiserver: --etcd-servers=https://10.240.0.10:2379 dropped: a kthwd API server uses the member beside it", "", ""},
		{"another program's", nameScheduler, "secure-port=1", false, "", "--kube-scheduler-arg=secure-port=1: kthwd sets this flag itself", "set --scheduler-port"},
		{"would exit the process", nameScheduler, "write-config-to=/x", false, "", "--kube-scheduler-arg=write-config-to=/x: kthwd sets this flag itself", "upstream's code exits the process there"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kept, warnings, errs := checkOwned(tt.program, ours, parseUserArgs([]string{tt.arg}))
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
	var h *hinted
	errors.As(err, &h)
	if h == nil || h.Hint() != hint {
		t.Errorf("got hint %v, want %q", h, hint)
	}
}

// What the owned flags say must be flags that the programs really have.
func TestOwnedFlagsExist(t *testing.T) {
	for program, keys := range owned {
		for key := range keys {
			args := []arg{{key, ""}}
			var err error
			switch program {
			case nameEtcd:
				_, err = parseEtcd(append(etcdArgs(fixed(), fixed().Layout(), "/s"), args...), silent)
			case nameAPIServer:
				_, err = parseAPIServer(args, pki.ControllerNames{})
			case nameControllerManager:
				_, err = parseControllerManager(args)
			case nameScheduler:
				_, err = parseScheduler(args)
			}
			// log-outputs and config-file are etcd's, though not in embed's own set.
			if err != nil && strings.Contains(err.Error(), "no such flag") && key != "config-file" {
				t.Errorf("%s: %v", program, err)
			}
		}
	}
}
