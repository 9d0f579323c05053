package config

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kthwd/appliance/advice"
	"kthwd/lb"
)

// lbArgs returns the minimal flags of a load balancer.
func lbArgs(more ...string) []string {
	return append([]string{"--role=lb", "--backend=10.0.1.73:6443"}, more...)
}

func TestLoadBalancer(t *testing.T) {
	l, err := load(t, `
role: lb
backend: [10.0.1.73:6443, "controller-1.example.com:6443"]
listen:
- :6443
check-interval: 500ms
slow-start: 0
access-log: /var/log/kthwd-access.log
upgrade-socket: "@kthwd"
`, "--drain-timeout=1m30s", "--metrics-address=:9999", "--metrics-insecure", "--max-connections-per-source=100")
	if err != nil {
		t.Fatal(err)
	}
	want := lb.Default()
	want.Backends = []string{"10.0.1.73:6443", "controller-1.example.com:6443"}
	want.Listen = []string{":6443"}
	want.CheckInterval, want.SlowStart, want.DrainTimeout = 500*time.Millisecond, 0, 90*time.Second
	want.AccessLog, want.UpgradeSocket, want.MaxPerSource = "/var/log/kthwd-access.log", "@kthwd", 100
	if diff := cmp.Diff(want, l.Config.LB); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if l.Config.MetricsAddress != ":9999" {
		t.Errorf("MetricsAddress: got %q", l.Config.MetricsAddress)
	}
	// The controller's part was not resolved.
	if diff := cmp.Diff(Default().Controller, l.Config.Controller); diff != "" {
		t.Errorf("the controller's part: -want +got:\n%s", diff)
	}
}

func TestPathsOfALoadBalancerAreAbsolute(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	l, err := load(t, "", lbArgs("--backend-ca=ca.pem", "--check-client-certificate=c.pem", "--check-client-key=k.pem",
		"--access-log=log", "--upgrade-socket=sock", "--discovery-kubeconfig=kc", "--discovery-cache=cache")...)
	if err != nil {
		t.Fatal(err)
	}
	c := l.Config.LB
	for got, want := range map[string]string{
		c.BackendCA: "ca.pem", c.CheckCert: "c.pem", c.CheckKey: "k.pem", c.AccessLog: "log",
		c.UpgradeSocket: "sock", c.DiscoveryKubeconfig: "kc", c.DiscoveryCache: "cache",
	} {
		if got != dir+"/"+want {
			t.Errorf("got %s, want %s/%s", got, dir, want)
		}
	}
}

// Each field of lb.Config has the setting that is bound to it, and no other.
func TestLBSettings(t *testing.T) {
	l := NewLoader()
	bound := map[uintptr]string{}
	for _, s := range l.table {
		bound[reflect.ValueOf(s.value).Pointer()] = s.name
	}
	config := reflect.ValueOf(&l.Config.LB).Elem()
	want := map[string]string{}
	for i := range config.NumField() {
		want[config.Type().Field(i).Name] = bound[config.Field(i).Addr().Pointer()]
	}
	if diff := cmp.Diff(want, lbSettings); diff != "" {
		t.Errorf("-bound +lbSettings:\n%s", diff)
	}
}

func TestProblemsOfALoadBalancer(t *testing.T) {
	joined := func(more ...string) []string {
		return append([]string{"--role=controller,lb", "--backend=10.0.1.35:6443", "--advertise-address=10.0.1.73"}, more...)
	}
	tests := []struct {
		name, file string
		args       []string
		want       string // all lines
	}{
		{name: "least", args: lbArgs()},
		{name: "no backend", args: []string{"--role=lb"}, want: "--backend is empty: there is nothing to balance"},
		{name: "no backend, in a file", file: "role: lb\nbackend: []\n", want: "kthwd.yaml:2: backend is empty: there is nothing to balance"},
		{name: "only discovery", args: []string{"--role=lb", "--discovery-kubeconfig=/x"}},
		{name: "backend without port", args: []string{"--role=lb", "--backend=10.0.1.73"}, want: `--backend "10.0.1.73" has no port`},
		{name: "backend twice", args: lbArgs("--backend=10.0.1.73:6443"), want: "--backend 10.0.1.73:6443 is given twice"},
		{name: "backend is ourselves", file: "role: lb\nlisten: :6443\nbackend: 127.0.0.1:6443\n",
			want: "kthwd.yaml:3: backend 127.0.0.1:6443 is this load balancer itself, which listens on :6443"},
		{name: "algorithm", args: lbArgs("--balance=fastest"), want: `--balance "fastest" is none of least-connections, round-robin, source, first`},
		{name: "check", args: lbArgs("--check=http"), want: `--check "http" is none of https, tcp, none`},
		{name: "duration without unit", args: lbArgs("--check-interval=30"), want: `--check-interval "30" is not a duration, such as 30s`},
		{name: "duration without unit, in a file", file: "role: lb\nbackend: a:1\ndrain-timeout: 30\n", want: `kthwd.yaml:3: drain-timeout "30" is not a duration, such as 30s`},
		{name: "duration out of range", args: lbArgs("--check-interval=1ms"), want: "--check-interval 1ms is out of range: want 10ms to 24h"},
		{name: "number", args: lbArgs("--check-fall=0"), want: "--check-fall 0 is out of range: want 1 to 100"},
		{name: "half a certificate", args: lbArgs("--check-client-certificate=/x"), want: "--check-client-certificate /x needs --check-client-key"},
		{name: "the other half", args: lbArgs("--check-client-key=/x"), want: "--check-client-key /x needs --check-client-certificate"},
		{name: "cache alone", args: lbArgs("--discovery-cache=/x"), want: "--discovery-cache /x needs --discovery-kubeconfig"},
		{name: "unknown key", file: "role: lb\nbackend: a:1\nbalancer: x\n", want: `kthwd.yaml:3: unknown key "balancer"`},
		{name: "listen twice", args: lbArgs("--listen=:6443", "--listen=:6443"), want: "--listen :6443 is given twice"},
		{name: "listen on all and on one", args: lbArgs("--listen=:6443", "--listen=10.0.1.48:6443"), want: "--listen 10.0.1.48:6443 is part of :6443, which is given as well"},
		{name: "listen on one and on all", args: lbArgs("--listen=[fd00::1]:6443", "--listen=[::]:6443"), want: "--listen [fd00::1]:6443 is part of [::]:6443, which is given as well"},
		{name: "listen on all of both families", args: lbArgs("--listen=0.0.0.0:6443", "--listen=[::]:6443")},
		{name: "listen on all and on all of a family", args: lbArgs("--listen=[::]:6443", "--listen=:6443"), want: "--listen [::]:6443 is part of :6443, which is given as well"},
		{name: "listen on all of the other family", args: lbArgs("--listen=[::]:10300")},
		{name: "joined, all of the other family", args: joined("--listen=[::]:6443", "--bind-address=10.0.1.48")},
		{name: "listen on both families", args: lbArgs("--listen=0.0.0.0:6443", "--listen=[fd00::1]:6443")},
		{name: "listen and metrics", args: lbArgs("--listen=:10300"), want: "--metrics-address and --listen both use port 10300"},
		{name: "flag of a controller", args: lbArgs("--kube-apiserver-arg=v=4"), want: "--kube-apiserver-arg belongs to --role=controller; this process is --role=lb"},
		{name: "key of a controller", file: "role: lb\nbackend: a:1\ndata-dir: /x\n", want: "kthwd.yaml:3: data-dir belongs to --role=controller; this process is --role=lb"},
		{name: "a controller's values do not matter", args: lbArgs("--metrics-address=127.0.0.1:6444")},

		{name: "joined, same port", args: joined(), want: "--listen and --secure-port both use port 6443"},
		{name: "joined", args: joined("--listen=:443")},
		{name: "joined, flags of both", args: joined("--listen=:443", "--data-dir=/x", "--balance=first")},
		{name: "joined, port of the health bridge", args: joined("--listen=:80"), want: "--listen and --health-address both use port 80"},
		{name: "joined, both parts wrong", args: joined("--listen=:443", "--secure-port=0", "--check-fall=0"),
			want: "--secure-port 0 is not a port: want 1 to 65535\n--check-fall 0 is out of range: want 1 to 100"},
		{name: "lb twice", args: lbArgs("--role=lb"), want: "--role lb is given twice"},
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

// A list may be one value, on the command line and in the file; what YAML takes for its own
// syntax is named.
func TestListsOfALoadBalancer(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		args       []string
		want       string // all lines, with hints; then the settings are not two
	}{
		{name: "flags", args: []string{"--listen=:6443", "--listen=:443", "--backend=a:1", "--backend=b:1"}},
		{name: "flags with commas", args: []string{"--listen=:6443,:443", "--backend=a:1,b:1,"}},
		{name: "flags with spaces", args: []string{"--listen=:6443 :443", "--backend=a:1 b:1"}},
		{name: "flags with brackets", args: []string{"--listen=[:6443, :443]", "--backend=[a:1, b:1]"}},
		{name: "lists", file: "listen: [\":6443\", ':443']\nbackend: [a:1, b:1]\n"},
		{name: "lists with a comma at the end", file: "listen: [\":6443\", ':443',]\nbackend: [a:1, b:1,]\n"},
		{name: "lists of lines", file: "listen:\n- :6443\n- :443\nbackend:\n  - a:1\n  - b:1\n"},
		{name: "values", file: "listen: :6443, :443\nbackend: a:1 b:1\n"},
		{name: "text of lines", file: "listen: |\n  :6443\n  :443\nbackend: >\n  a:1\n  b:1\n"},
		{name: "values in quotes", file: "listen: \"[:6443, :443]\"\nbackend: 'a:1,b:1'\n"},
		{name: "no quotes", file: "listen: [:6443, :443]\nbackend: a:1\n", want: "did not find expected node content (put the address in quotes: \":6443\")"},
		{name: "IPv6 without quotes", file: "listen:\n- [::]:6443\nbackend: a:1\n", want: "(put the address in quotes: \"[::]:6443\")"},
		{name: "ports missing", args: []string{"--listen=:6443,:443", "--backend=10.0.1.73,b:1"}, want: `--backend "10.0.1.73" has no port (did you mean 10.0.1.73:6443?)`},
		{name: "URL", args: []string{"--listen=:6443,:443", "--backend=https://10.0.1.73:6443 b:1"}, want: `--backend "https://10.0.1.73:6443" is a URL (did you mean 10.0.1.73:6443?)`},
		{name: "mapping", file: "listen: [{port: 6443}]\nbackend: a:1\n", want: "listen needs one value as element 1, not a mapping"},
		{name: "null", file: "listen: [~]\nbackend: a:1\n", want: "listen needs one value as element 1, not"},
	} {
		l, err := load(t, tt.file, append([]string{"--role=lb"}, tt.args...)...)
		var got []string
		for _, e := range advice.Lines(l.WithPlaces(err)) {
			text := e.Error()
			if p, ok := errors.AsType[*Problem](e); ok && p.Hint != "" {
				text += " (" + p.Hint + ")"
			}
			got = append(got, text)
		}
		text := strings.Join(got, "\n")
		switch {
		case tt.want != "":
			if !strings.Contains(text, tt.want) {
				t.Errorf("%s: got %q, want %q", tt.name, text, tt.want)
			}
		case err != nil || !slices.Equal(l.Config.LB.Listen, []string{":6443", ":443"}) || !slices.Equal(l.Config.LB.Backends, []string{"a:1", "b:1"}):
			t.Errorf("%s: got %q, listen %q, backend %q", tt.name, text, l.Config.LB.Listen, l.Config.LB.Backends)
		}
	}
}

// Each role prints its own settings and accepts its own output.
func TestPrintOfARole(t *testing.T) {
	for role, want := range map[string][2]bool{"controller": {true, false}, "lb": {false, true}, "controller,lb": {true, true}, "": {true, true}} {
		l, err := load(t, "", "--role="+role, "--backend=a:1", "--listen=:443", "--drain-timeout=2m")
		if role != "" && role != "controller" && err != nil {
			t.Fatal(err)
		}
		var printed bytes.Buffer
		if err := l.Print(&printed); err != nil {
			t.Fatal(err)
		}
		text := printed.String()
		if got := [2]bool{strings.Contains(text, "\ndata-dir: "), strings.Contains(text, "\nbackend: ")}; got != want {
			t.Errorf("role %q: got controller, lb %v; want %v\n%s", role, got, want, text)
		}
		if role != "lb" {
			continue
		}
		again, err := load(t, text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if diff := cmp.Diff(l.Config, again.Config); diff != "" {
			t.Errorf("-printed +read:\n%s\n%s", diff, text)
		}
	}
}

func TestNames(t *testing.T) {
	l := NewLoader()
	for _, tt := range []struct {
		roles         []string
		with, without string
	}{{nil, "data-dir backend role", ""}, {[]string{RoleLB}, "backend role metrics-address", "data-dir"}, {[]string{RoleController}, "data-dir role", "backend"}} {
		names := l.Names(tt.roles...)
		for name := range strings.FieldsSeq(tt.with) {
			if !slices.Contains(names, name) {
				t.Errorf("%q lack %s", tt.roles, name)
			}
		}
		if slices.Contains(names, tt.without) {
			t.Errorf("%q have %s", tt.roles, tt.without)
		}
	}
}

func TestCheckReload(t *testing.T) {
	running, err := load(t, "", lbArgs("--listen=:6443")...)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{args: lbArgs("--listen=:6443", "--backend=10.0.1.35:6443", "--drain-timeout=1s", "--log-level=debug")},
		{args: lbArgs("--listen=10.0.1.50:443", "--freebind")},
		{args: lbArgs("--listen=:6443", "--upgrade-socket=@x"), want: `--upgrade-socket is '@x' now and was "": it cannot change while kthwd runs`},
		{args: lbArgs("--listen=:6443", "--metrics-address=", "--log-format=json"),
			want: "--log-format is json now and was text: it cannot change while kthwd runs\n--metrics-address is \"\" now and was 127.0.0.1:10300: it cannot change while kthwd runs"},
		{args: lbArgs("--listen=:6443", "--discovery-kubeconfig=/x", "--discovery-cache=/y"),
			want: "--discovery-kubeconfig is /x now and was \"\": it cannot change while kthwd runs\n--discovery-cache is /y now and was \"\": it cannot change while kthwd runs"},
		{args: []string{"--role=controller"}, want: "--role is [controller] now and was [lb]: it cannot change while kthwd runs"},
	} {
		l, err := load(t, "", tt.args...)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.CheckReload(running); !strings.HasPrefix(lines(l, err), tt.want) || (err == nil) != (tt.want == "") {
			t.Errorf("%q: got\n%s\nwant\n%s", tt.args, lines(l, err), tt.want)
		}
	}
}

// Problems that package lb finds in files name flags, too.
func TestWithPlaces(t *testing.T) {
	l, err := load(t, "role: lb\nbackend: a:1\nbackend-ca: /x\n")
	if err != nil {
		t.Fatal(err)
	}
	err = l.WithPlaces(&lb.Problem{Field: "BackendCA", Text: "/x: no such file"})
	if got, want := lines(l, err), "kthwd.yaml:3: backend-ca /x: no such file"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if l.WithPlaces(nil) != nil {
		t.Error("no error became one")
	}
}
