package config

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// load reads a file and a command line as main does.
func load(t testing.TB, file string, args ...string) (*Loader, error) {
	t.Helper()
	l := NewLoader()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	l.AddFlags(fs)
	if file != "" {
		path := filepath.Join(t.TempDir(), "kthwd.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config=" + path}, args...)
	} else {
		args = append([]string{"--config="}, args...)
	}
	if err := fs.Parse(args); err != nil {
		return l, l.FlagError(err)
	}
	if err := l.Load(); err != nil {
		return l, err
	}
	if err := l.Resolve(); err != nil {
		return l, err
	}
	return l, l.Validate()
}

// lines returns an error's text without the directory of the test's file.
func lines(l *Loader, err error) string {
	if err == nil {
		return ""
	}
	dir := filepath.Dir(l.fs.Lookup("config").Value.String())
	return strings.ReplaceAll(err.Error(), dir+"/", "")
}

func TestDefaultsAreValid(t *testing.T) {
	l, err := load(t, "", "--role=controller")
	if err != nil {
		t.Fatal(err)
	}
	c := l.Config.Controller
	if c.Name == "" || c.AdvertiseAddress == "" || c.EtcdDataDir != "/var/lib/kubernetes/etcd" {
		t.Errorf("not resolved: name %q, advertise address %q, etcd data dir %q", c.Name, c.AdvertiseAddress, c.EtcdDataDir)
	}
	for key, want := range map[string]string{
		"role": "flag", "data-dir": "default", "name": "default, the host name",
		"etcd-data-dir": "default, below data-dir", "advertise-address": "default, where the default route leaves from",
	} {
		if got := l.Origin(key); got != want {
			t.Errorf("Origin(%s) = %q, want %q", key, got, want)
		}
	}
}

func TestExactFlags(t *testing.T) {
	l := NewLoader()
	for name := range strings.FieldsSeq(`role data-dir etcd-data-dir config bind-address secure-port advertise-address
		etcd-client-port etcd-peer-port health-address metrics-address initial-cluster service-cluster-ip-range cluster-cidr log-format
		name subject-alt-name controller-manager-port scheduler-port health-server-name log-level
		etcd-arg kube-apiserver-arg kube-controller-manager-arg kube-scheduler-arg`) {
		if f := l.fs.Lookup(name); f == nil || f.Hidden {
			t.Errorf("no flag --%s, or hidden", name)
		}
	}
}

// Every field is bound to one flag, so that file and flag can set all of them.
func TestEveryFieldHasAFlag(t *testing.T) {
	l := NewLoader()
	bound := map[uintptr]string{}
	for _, s := range l.table {
		bound[reflect.ValueOf(s.value).Pointer()] = s.role
	}
	for _, part := range []struct {
		of   any
		role string
	}{{&l.Config, RoleAll}, {&l.Config.Controller, RoleController}, {&l.Config.LB, RoleLB}} {
		v := reflect.ValueOf(part.of).Elem()
		for i := range v.NumField() {
			name := v.Type().Field(i).Name
			if role := bound[v.Field(i).Addr().Pointer()]; role != part.role && name != "Controller" && name != "LB" && name != "StatusSocket" {
				t.Errorf("%s.%s has a flag of role %q, want %q", v.Type(), name, role, part.role)
			}
		}
	}
}

func TestFileUnderFlags(t *testing.T) {
	l, err := load(t, `
# comments are welcome
role: controller
data-dir: &dir /srv/kubernetes
etcd-data-dir: *dir-of-etcd
`, "--secure-port=7443")
	if got, want := lines(l, err), `kthwd.yaml: not YAML: unknown anchor 'dir-of-etcd' referenced`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	l, err = load(t, `
role: controller
data-dir: /srv/kubernetes
secure-port: 8443
etcd-client-port: 12379
log-level:
  - warn
  - etcd=debug
  - kthwd=info
kube-apiserver-arg:
- --v=4
- profiling
- runtime-config=api/all=true,a/b=false
etcd-arg: []
subject-alt-name: lb.example.com
health-address: ""
`, "--secure-port=7443", "--kube-scheduler-arg=a=1,2", "--kube-scheduler-arg=b=3", "--name=One")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Role = []string{"controller"}
	want.LogLevel = []string{"warn", "etcd=debug", "kthwd=info"}
	k := &want.Controller
	k.DataDir, k.EtcdDataDir, k.Name = "/srv/kubernetes", "/srv/kubernetes/etcd", "One"
	k.AdvertiseAddress = l.Config.Controller.AdvertiseAddress
	k.SecurePort, k.EtcdClientPort = 7443, 12379
	k.APIServerArgs = []string{"v=4", "profiling=true", "runtime-config=api/all=true,a/b=false"}
	k.SchedulerArgs = []string{"a=1,2", "b=3"}
	k.EtcdArgs, k.ControllerManagerArgs = []string{}, nil
	k.SubjectAltNames = []string{"lb.example.com"}
	k.HealthAddress = ""
	if diff := cmp.Diff(want, l.Config); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for key, want := range map[string]string{
		"data-dir": "kthwd.yaml:3", "secure-port": "flag", "log-level": "kthwd.yaml:6", "etcd-arg": "kthwd.yaml:14", "cluster-cidr": "default",
	} {
		if got := lines(l, fmt.Errorf("%s", l.Origin(key))); got != want {
			t.Errorf("Origin(%s) = %q, want %q", key, got, want)
		}
	}
}

func TestAFlagReplacesAList(t *testing.T) {
	l, err := load(t, "role: controller\nlog-level: [warn, etcd=debug]\n", "--log-level=error")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"error"}, l.Config.LogLevel); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestProblems(t *testing.T) {
	tests := []struct {
		name, file string
		args       []string
		want       string // all lines
	}{
		{name: "no role", want: "no role given"},
		{name: "unknown role", args: []string{"--role=controler"}, want: `--role "controler" is not a role: want controller, lb`},
		{name: "role twice", args: []string{"--role=controller", "--role=controller"}, want: "--role controller is given twice"},
		{name: "flags of a controller", args: []string{"--role=lb", "--backend=10.0.0.1:6443", "--data-dir=/x", "--secure-port=6443"},
			want: "--data-dir belongs to --role=controller; this process is --role=lb\n--secure-port belongs to --role=controller; this process is --role=lb"},
		{name: "flag of another role", args: []string{"--role=controller", "--backend=10.0.0.1:6443"},
			want: "--backend belongs to --role=lb; this process is --role=controller"},
		{name: "key of another role", file: "role: controller\nlisten: :6443\n",
			want: "kthwd.yaml:2: listen belongs to --role=lb; this process is --role=controller"},
		{name: "unknown flag", args: []string{"--data-dri=x"}, want: "unknown flag --data-dri"},
		{name: "unknown shorthand", args: []string{"-x"}, want: "unknown shorthand flag: 'x' in -x"},
		{name: "flag without value", args: []string{"--data-dir"}, want: "flag needs an argument: --data-dir"},
		{name: "flag of the wrong type", args: []string{"--secure-port=https"}, want: `--secure-port "https" is not a whole number`},

		{name: "unknown key", file: "role: controller\nsecure_port: 1\n", want: `kthwd.yaml:2: unknown key "secure_port"`},
		{name: "config in the file", file: "config: x\n", want: `kthwd.yaml:1: "config" names this file and cannot be set in it`},
		{name: "duplicate", file: "role: controller\ndata-dir: /a\nrole: lb\n", want: "kthwd.yaml:3: role is already set in line 1"},
		{name: "wrong type", file: "role: controller\nsecure-port: https\n", want: `kthwd.yaml:2: secure-port "https" is not a whole number`},
		{name: "wrong type below a flag", file: "secure-port: https\n", args: []string{"--secure-port=1"}, want: `kthwd.yaml:1: secure-port "https" is not a whole number`},
		{name: "list for one value", file: "data-dir: [/a]\n", want: "kthwd.yaml:1: data-dir takes one value, not a list"},
		{name: "mapping for a value", file: "data-dir: {a: b}\n", want: "kthwd.yaml:1: data-dir needs a value or a list, not a mapping"},
		{name: "mapping in a list", file: "log-level:\n- warn\n- a: b\n", want: "kthwd.yaml:3: log-level needs one value as element 2, not a mapping"},
		{name: "no value", file: "data-dir:\n", want: `kthwd.yaml:1: data-dir has no value; write "" for an empty value, or remove the line`},
		{name: "nested", file: "controller:\n  data-dir: /a\n", want: `kthwd.yaml:2: controller needs a value or a list, not a mapping`},
		{name: "not a mapping", file: "- role\n", want: `kthwd.yaml:1: want lines of the form "key: value", got a list`},
		{name: "a word", file: "controller\n", want: `kthwd.yaml:1: want lines of the form "key: value", got "controller"`},
		{name: "two documents", file: "role: controller\n---\ndata-dir: /a\n", want: "kthwd.yaml:2: a second document begins here, want one"},
		{name: "broken", file: "role: controller\ndata-dir: 'a\nb: c\n", want: "kthwd.yaml:2: not YAML: found unexpected end of stream"},
		{name: "tabs", file: "role: controller\n\tdata-dir: a\n", want: "kthwd.yaml:2: not YAML: found a tab character that violates indentation"},
		{name: "several", file: "rolle: controller\nsecure-port: x\nrole: controller\n",
			want: "kthwd.yaml:1: unknown key \"rolle\"\nkthwd.yaml:2: secure-port \"x\" is not a whole number"},

		{name: "empty data dir", args: []string{"--role=controller", "--data-dir="}, want: "--data-dir is empty"},
		{name: "same directories", args: []string{"--role=controller", "--data-dir=/a", "--etcd-data-dir=/a/"}, want: "--etcd-data-dir /a is also --data-dir"},
		{name: "port", args: []string{"--role=controller", "--secure-port=0", "--etcd-peer-port=65536"},
			want: "--secure-port 0 is not a port: want 1 to 65535\n--etcd-peer-port 65536 is not a port: want 1 to 65535"},
		{name: "port in the file", file: "role: controller\nsecure-port: -1\n", want: "kthwd.yaml:2: secure-port -1 is not a port: want 1 to 65535"},
		{name: "same port", args: []string{"--role=controller", "--secure-port=2379"}, want: "--etcd-client-port and --secure-port both use port 2379"},
		{name: "same port, one on all addresses", args: []string{"--role=controller", "--health-address=:10300"}, want: "--metrics-address and --health-address both use port 10300"},
		{name: "same port on different addresses", args: []string{"--role=controller", "--health-address=127.0.0.2:10300"}},
		{name: "same port on one address", args: []string{"--role=controller", "--bind-address=127.0.0.2", "--health-address=localhost:10257"}, want: "--health-address and --controller-manager-port both use port 10257"},
		{name: "health address without port", args: []string{"--role=controller", "--health-address=localhost"}, want: `--health-address "localhost" has no port`},
		{name: "health address with a name", args: []string{"--role=controller", "--health-address=example.com:80"}, want: `--health-address "example.com:80" has "example.com" in place of an IP address`},
		{name: "health address without brackets", args: []string{"--role=controller", "--health-address=::1:80"}, want: `--health-address "::1:80" needs brackets around an IPv6 address, and only there`},
		{name: "health address on IPv6", args: []string{"--role=controller", "--health-address=[::1]:80"}},
		{name: "metrics port", args: []string{"--role=controller", "--metrics-address=:http"}, want: `--metrics-address ":http" has the port "http": want 1 to 65535`},
		{name: "listeners off", args: []string{"--role=controller", "--metrics-address=", "--health-address="}},

		{name: "bind address", args: []string{"--role=controller", "--bind-address=eth0", "--advertise-address=127.0.0.1"}, want: `--bind-address "eth0" is not an IP address`},
		{name: "advertise all", args: []string{"--role=controller", "--advertise-address=0.0.0.0"}, want: "--advertise-address 0.0.0.0 is not an address that other machines can reach"},
		{name: "advertise a name", args: []string{"--role=controller", "--advertise-address=example.com"}, want: `--advertise-address "example.com" is not an IP address`},
		{name: "advertise with zone", args: []string{"--role=controller", "--advertise-address=fe80::1%eth0"}, want: "--advertise-address fe80::1%eth0 has a zone, which other machines cannot use"},
		{name: "advertise link-local", args: []string{"--role=controller", "--advertise-address=169.254.1.1"}, want: "--advertise-address 169.254.1.1 is a link-local address, and the service kubernetes cannot have one"},
		{name: "advertise link-local without endpoints", args: []string{"--role=controller", "--advertise-address=169.254.1.1", "--kube-apiserver-arg=endpoint-reconciler-type=none"}},
		{name: "advertise loopback", args: []string{"--role=controller", "--advertise-address=127.0.0.1"}},
		{name: "name", args: []string{"--role=controller", "--name=a b"}, want: `--name "a b" is not a name: want letters, digits, dots and dashes`},
		{name: "alt names", args: []string{"--role=controller", "--subject-alt-name=*.example.com,10.0.0.1,::1"}},
		{name: "alt name", args: []string{"--role=controller", "--subject-alt-name=https://x"}, want: `--subject-alt-name "https://x" is neither a name nor an address`},
		{name: "health server name", args: []string{"--role=controller", "--health-server-name=a:80"}, want: `--health-server-name "a:80" is not a host name`},

		{name: "overlap", args: []string{"--role=controller", "--cluster-cidr=10.0.0.0/8", "--advertise-address=192.168.1.1"},
			want: "--service-cluster-ip-range 10.32.0.0/24 overlaps --cluster-cidr 10.0.0.0/8"},
		{name: "dual stack", args: []string{"--role=controller", "--service-cluster-ip-range=10.32.0.0/24,fd00:1::/112", "--cluster-cidr=10.200.0.0/16,fd00:2::/56"}},
		{name: "dual stack overlap", args: []string{"--role=controller", "--service-cluster-ip-range=10.32.0.0/24,fd00:1::/112", "--cluster-cidr=10.200.0.0/16,fd00::/16"},
			want: "--service-cluster-ip-range fd00:1::/112 overlaps --cluster-cidr fd00::/16"},
		{name: "two of a family", args: []string{"--role=controller", "--cluster-cidr=10.200.0.0/16,10.201.0.0/16"},
			want: "--cluster-cidr 10.200.0.0/16,10.201.0.0/16 has two ranges of the same family: want one each of IPv4 and IPv6"},
		{name: "no CIDR", args: []string{"--role=controller", "--cluster-cidr=10.200.0.0"}, want: `--cluster-cidr "10.200.0.0" is not a CIDR: want ADDRESS/BITS, such as 10.32.0.0/24`},
		{name: "empty range", args: []string{"--role=controller", "--service-cluster-ip-range="}, want: "--service-cluster-ip-range is empty"},
		{name: "this machine in a range", args: []string{"--role=controller", "--advertise-address=10.200.3.4"}, want: "--cluster-cidr 10.200.0.0/16 contains --advertise-address 10.200.3.4"},

		{name: "log format", args: []string{"--role=controller", "--log-format=plain"}, want: `--log-format "plain" is not a format: want text or json`},
		{name: "log level", args: []string{"--role=controller", "--log-level=etcd=loud"},
			want: `--log-level etcd=loud: unknown log level "loud": want error, warn, info, debug or a verbosity from 0 to 20`},
		{name: "arg", args: []string{"--role=controller", "--etcd-arg==x"}, want: `--etcd-arg "=x" is not KEY=VALUE`},
		{name: "arg of two words", args: []string{"--role=controller", "--kube-apiserver-arg=v 4"}, want: `--kube-apiserver-arg "v 4" is not KEY=VALUE`},
		{name: "all at once", args: []string{"--secure-port=0", "--log-format=xml", "--cluster-cidr=x"},
			want: "no role given\n--log-format \"xml\" is not a format: want text or json\n--secure-port 0 is not a port: want 1 to 65535\n--cluster-cidr \"x\" is not a CIDR: want ADDRESS/BITS, such as 10.32.0.0/24"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := load(t, tt.file, tt.args...)
			if got := lines(l, err); got != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

func TestHints(t *testing.T) {
	tests := []struct {
		file, want string
		args       []string
	}{
		{args: []string{"--data-dri=x"}, want: "did you mean --data-dir?"},
		{args: []string{"--etcd_data_dir=x"}, want: "did you mean --etcd-data-dir?"},
		{args: []string{"--xyzzy"}, want: ""},
		{args: []string{"--role=contoller"}, want: "did you mean --role=controller?"},
		{file: "clusterCIDR: x\n", want: "did you mean cluster-cidr?"},
		{file: "backends: x\n", want: "did you mean backend?"},
		{file: "role: lb\ncheck_interval: 1s\n", want: "did you mean check-interval?"},
		{args: []string{"--role=lbs"}, want: "did you mean --role=lb?"},
		{args: []string{"--role=lb", "--data-dir=x"}, want: "remove it; kthwd config --role=lb lists the settings of this role"},
	}
	for _, tt := range tests {
		_, err := load(t, tt.file, tt.args...)
		var p *Problem
		if !asProblem(err, &p) || p.Hint != tt.want {
			t.Errorf("%s%s: got %v with hint %q, want hint %q", tt.file, tt.args, err, p.Hint, tt.want)
		}
	}
}

func asProblem(err error, p **Problem) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		err = joined.Unwrap()[0]
	}
	var ok bool
	*p, ok = errors.AsType[*Problem](err)
	return ok
}

func TestFileThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		path, want string
	}{
		"missing":     {filepath.Join(dir, "kthwd.yaml"), "--config " + dir + "/kthwd.yaml: no such file"},
		"a directory": {dir, "read " + dir + ": is a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			l := NewLoader()
			if err := l.fs.Set("config", tt.path); err != nil {
				t.Fatal(err)
			}
			if err := l.Load(); err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// Print writes a file that sets the same configuration.
func TestPrintCanBeReadBack(t *testing.T) {
	l, err := load(t, "role: controller\ndata-dir: /srv/a b\nname: 'yes'\n",
		"--kube-apiserver-arg=x=a: b # c", "--kube-apiserver-arg=y=1\n2", "--subject-alt-name=a,b", "--health-address=")
	if err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	if err := l.Print(&printed); err != nil {
		t.Fatal(err)
	}
	again, err := load(t, printed.String())
	if err != nil {
		t.Fatalf("%v\n%s", err, &printed)
	}
	ignoreNil := cmp.Transformer("nil", func(s []string) string { return fmt.Sprintf("%q", s) })
	if diff := cmp.Diff(l.Config, again.Config, ignoreNil); diff != "" {
		t.Errorf("-printed +read:\n%s\n%s", diff, &printed)
	}
	for _, want := range []string{"data-dir: /srv/a b ", "kthwd.yaml:2\n", "secure-port: 6443 ", "# default\n", "name: yes ", "# flag\n"} {
		if !strings.Contains(printed.String(), want) {
			t.Errorf("no %q in\n%s", want, &printed)
		}
	}
}

func TestPKISpec(t *testing.T) {
	c := Default().Controller
	c.AdvertiseAddress, c.BindAddress, c.SubjectAltNames = "10.0.0.11", "10.0.0.11", []string{"lb.example.com", "10.0.0.20", "10.0.0.11"}
	c.ServiceClusterIPRange = "10.32.0.0/24,fd00:1::/112"
	got := c.PKISpec()
	if diff := cmp.Diff([]string{"10.0.0.11", "lb.example.com", "10.0.0.20"}, got.Addresses); diff != "" {
		t.Errorf("Addresses: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"10.0.0.11"}, got.Local); diff != "" {
		t.Errorf("Local: -want +got:\n%s", diff)
	}
	if !got.ServiceIP.Equal(net.IPv4(10, 32, 0, 1)) || got.Server != "https://10.0.0.11:6443" {
		t.Errorf("got service address %v and server %s", got.ServiceIP, got.Server)
	}
	c.BindAddress = "0.0.0.0"
	if diff := cmp.Diff([]string{"10.0.0.11", "127.0.0.1"}, c.PKISpec().Local); diff != "" {
		t.Errorf("Local, bound to all: -want +got:\n%s", diff)
	}
}

func TestWarnings(t *testing.T) {
	c := Default().Controller
	c.AdvertiseAddress = "10.0.0.1"
	if got := c.Warnings(); len(got) != 0 {
		t.Errorf("got %q, want none", got)
	}
	c.AdvertiseAddress, c.SchedulerPort = "::1", 1
	if got := c.Warnings(); len(got) != 2 {
		t.Errorf("got %q, want two", got)
	}
}

func TestSplitArg(t *testing.T) {
	for arg, want := range map[string][2]string{
		"v=4": {"v", "4"}, "--v=4": {"v", "4"}, "-v": {"v", "true"}, "a=b=c": {"a", "b=c"}, "a=": {"a", ""},
	} {
		if key, value := SplitArg(arg); key != want[0] || value != want[1] {
			t.Errorf("SplitArg(%q) = %q, %q; want %q", arg, key, value, want)
		}
	}
}

// FuzzFile: for any file the parser returns settings, or problems that name the file.
// Accepted settings can be printed and read back.
func FuzzFile(f *testing.F) {
	for _, s := range []string{
		"", "role: controller\n", "role: [controller]\nsecure-port: 1\n", "a: &a [*a]\n", "? x\n: y\n", "<<: {a: b}\n",
		"data-dir: |\n  x\n", "log-level: \"a\\\"b\"\n", "---\n---\n", "\x00", "role: controller\n\tx", "{role: controller, name: x}",
		"secure-port: 0x1F\n", "secure-port: 1_000\n", "etcd-arg: [a=b, 'c', \"d\\n\"]\n", "name: ~\n", "role: [a, '']\n", "role: ['a,b', \"c\\\"\"]\n", "role: a,b\n", "!!binary x: y\n", "&a a: *a\n",
		"role: 0\nsecure-port: 0", "role: controller\nlisten: [a:1]\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		l := NewLoader()
		if err := l.parseFile("F", text); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "F:") {
					t.Fatalf("%q does not name the file", line)
				}
			}
			return
		}
		var printed bytes.Buffer
		if err := l.Print(&printed); err != nil {
			t.Fatal(err)
		}
		again := NewLoader()
		if err := again.parseFile("F", printed.Bytes()); err != nil {
			t.Fatalf("read back: %v\n%s", err, &printed)
		}
		ignoreNil := cmp.Transformer("nil", func(s []string) string { return fmt.Sprintf("%q", s) })
		if diff := cmp.Diff(l.Config, again.Config, ignoreNil); diff != "" {
			t.Fatalf("-first +again:\n%s\n%s", diff, &printed)
		}
	})
}

// Files outside the data directory may be a map or a list.
func TestFiles(t *testing.T) {
	for name, tt := range map[string]struct{ file, want string }{
		"a map":        {"files:\n  ca.pem: /pki/ca.crt\n  ca-key.pem: /pki/ca.key\n", ""},
		"a list":       {"files: [ca.pem=/pki/ca.crt, ca-key.pem=/pki/ca.key]\n", ""},
		"no place":     {"files: [ca.pem]\n", "has no place"},
		"relative":     {"files: {ca.pem: pki/ca.crt}\n", "no absolute path"},
		"other file":   {"files: {ca.crt: /pki/ca.crt}\n", "no file that may be elsewhere"},
		"twice":        {"files: [ca.pem=/a, ca.pem=/b]\n", "twice"},
		"a list in it": {"files: {ca.pem: [/a]}\n", "NAME: FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			l := NewLoader()
			err := l.parseFile("kthwd.yaml", []byte("role: controller\n"+tt.file))
			if err == nil {
				err = errors.Join(l.Resolve(), l.Validate())
			}
			switch {
			case tt.want == "" && err != nil:
				t.Fatal(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if got := l.Config.Controller.Layout().CAKey(); tt.want == "" && got != "/pki/ca.key" {
				t.Errorf("got %s, want /pki/ca.key", got)
			}
		})
	}
}
