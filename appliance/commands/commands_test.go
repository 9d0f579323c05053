package commands

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

func testConfig(t *testing.T) config.Controller {
	t.Helper()
	c := config.Default().Controller
	c.DataDir, c.AdvertiseAddress, c.BindAddress, c.Name = filepath.Join(t.TempDir(), "data"), "127.0.0.1", "127.0.0.1", "c0"
	if err := c.Resolve(); err != nil {
		t.Fatal(err)
	}
	return c
}

// merged returns what upstream's own validation says to kthwd's flags with the user's.
func merged(t *testing.T, c config.Controller) (*Lines, error) {
	t.Helper()
	plan, err := pki.NewPlan(c.Layout(), c.PKISpec())
	if err != nil {
		t.Fatal(err)
	}
	return Check(c, plan)
}

// Flags that upstream's validation refuses together: kthwd's gives way, so that upstream accepts
// the user's.
func TestFlagsThatExcludeEachOther(t *testing.T) {
	authz := filepath.Join(t.TempDir(), "authz.yaml")
	if err := os.WriteFile(authz, []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- {type: Node, name: node}\n- {type: RBAC, name: rbac}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	admission := filepath.Join(t.TempDir(), "admission.yaml")
	if err := os.WriteFile(admission, []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	own := pki.Layout{Dir: t.TempDir()}
	if _, err := pki.Ensure(own, pki.Spec{Server: "https://127.0.0.1:6443"}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		program string
		users   []string
		gone    []string // kthwd's flags
		left    string   // an argument that is there
	}{
		{program.APIServer, []string{"authorization-config=" + authz}, []string{"authorization-mode"}, "--authorization-config=" + authz},
		{program.APIServer, []string{"disable-admission-plugins=LimitRanger,ResourceQuota"}, nil, "--enable-admission-plugins=NamespaceLifecycle,NodeRestriction,ServiceAccount,DefaultStorageClass"},
		// Without settings EventRateLimit does not start, so it leaves with kthwd's file of them.
		{program.APIServer, []string{"admission-control-config-file=" + admission}, nil, "ResourceQuota,DenyServiceExternalIPs\n"},
		{program.APIServer, []string{"admission-control-config-file-"}, []string{"admission-control-config-file"}, "ResourceQuota,DenyServiceExternalIPs\n"},
		{program.APIServer, []string{"disable-admission-plugins=EventRateLimit"}, nil, "ResourceQuota,DenyServiceExternalIPs\n--admission-control-config-file="},
		{program.APIServer, []string{"runtime-config-"}, []string{"runtime-config"}, ""},
		{program.APIServer, []string{"--audit_log_path-", "--audit-policy-file-"}, []string{"audit-log-path", "audit-policy-file"}, ""},
		{program.APIServer, []string{"encryption-provider-config-"}, []string{"encryption-provider-config"}, ""},
		{program.ControllerManager, []string{"cluster-signing-kubelet-serving-cert-file=" + own.CA(), "cluster-signing-kubelet-serving-key-file=" + own.CAKey()},
			[]string{"cluster-signing-cert-file", "cluster-signing-key-file"}, "--cluster-signing-legacy-unknown-key-file="},
		{program.Etcd, []string{"discovery-srv=example.com"}, []string{"initial-cluster"}, ""},
		{program.Etcd, []string{"discovery-endpoints=http://127.0.0.1:1", "discovery-token=t"}, []string{"initial-cluster"}, ""},
		{program.Etcd, []string{"experimental-snapshot-catchup-entries=7"}, nil, "--snapshot-catchup-entries=7"},
	} {
		t.Run(tt.users[0], func(t *testing.T) {
			c := testConfig(t)
			*passedThrough(&c, tt.program) = tt.users
			if err := c.Resolve(); err != nil {
				t.Fatal(err)
			}
			l, err := merged(t, c)
			if err != nil {
				t.Fatalf("refused: %v", err)
			}
			for _, key := range tt.gone {
				if slices.ContainsFunc(l.Args[tt.program], func(a program.Arg) bool { return a.Key == key }) {
					t.Errorf("--%s is still there", key)
				}
				if tt.program != program.ControllerManager && !slices.ContainsFunc(l.Overrides, func(o program.Override) bool { return o.Key == key }) {
					t.Errorf("overrides: got %v, want --%s among them", l.Overrides, key)
				}
			}
			if all := strings.Join(program.Render(l.Args[tt.program]), "\n"); !strings.Contains(all, tt.left) {
				t.Errorf("got\n%s\nwant %s", all, tt.left)
			}
		})
	}
}

// Each file that a flag names is loaded by upstream's own loader, before anything starts, and
// a secret that others can read is refused.
func TestNamedFiles(t *testing.T) {
	dir := t.TempDir()
	c := testConfig(t)
	c.DataDir = dir
	if _, err := pki.Ensure(c.Layout(), c.PKISpec()); err != nil {
		t.Fatal(err)
	}
	file := func(name, data string, mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(data), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := os.ReadFile(c.Layout().Key(pki.NameServiceAccount))
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(c.Layout().Kubeconfig(pki.NameScheduler))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(c.Layout().CA())
	if err != nil {
		t.Fatal(err)
	}
	open := file("open-key.pem", string(key), 0o644)
	tokens := file("tokens", "secret-token,user,uid\n", 0o600)
	for _, tt := range []struct{ program, arg, want string }{
		{program.APIServer, "token-auth-file=" + tokens, ""},
		{program.APIServer, "token-auth-file=" + file("tokens", "secret-token,user,uid\n", 0o644), "readable or writable by others (mode 0644)"},
		{program.APIServer, "token-auth-file=" + file("tokens", "secret-token\n", 0o600), "at least 3 columns"},
		{program.APIServer, "service-account-signing-key-file=" + open, "(mode 0644)"},
		{program.APIServer, "service-account-key-file=" + open, "(mode 0644)"}, // a private key in place of the public one
		{program.APIServer, "requestheader-client-ca-file=" + file("both.pem", string(ca)+string(key), 0o644), "(mode 0644)"},
		{program.APIServer, "requestheader-client-ca-file=" + file("ca.pem", "nothing", 0o644), "ca.pem"},
		{program.APIServer, "kubelet-client-key=" + c.Layout().Key(pki.NameAdmin), "does not match"},
		{program.APIServer, "admission-control-config-file=" + file("a.yaml", "kind: Nonsense\n", 0o644), "a.yaml"},
		{program.APIServer, "authentication-config=" + file("a.yaml", "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: [{}]\n", 0o644), "jwt[0]"},
		{program.APIServer, "egress-selector-config-file=" + file("e.yaml", "kind: Nonsense\n", 0o644), "e.yaml"},
		{program.APIServer, "tracing-config-file=" + file("t.yaml", "kind: Nonsense\n", 0o644), "t.yaml"},
		{program.APIServer, "audit-webhook-config-file=" + file("w.yaml", string(config), 0o644), "(mode 0644)"},
		{program.APIServer, "audit-webhook-config-file=" + file("w.yaml", string(config), 0o600), ""},
		{program.APIServer, "audit-webhook-config-file=" + file("a,b.yaml", string(config), 0o600), ""},
		{program.APIServer, "service-account-signing-key-file=" + file("a,b-key.pem", string(key), 0o644), "a,b-key.pem: a secret that is readable or writable by others (mode 0644)"},
		{program.APIServer, "tls-sni-cert-key=" + c.Layout().Cert(pki.NameKubernetes) + "," + open, "(mode 0644)"},
		{program.APIServer, "audit-webhook-config-file=/nowhere", "no such file"},
		{program.ControllerManager, "authentication-kubeconfig=" + file("k", string(config), 0o604), "(mode 0604)"},
		{program.ControllerManager, "service-account-private-key-file=" + file("k", "nothing", 0o600), "k: "},
		{program.ControllerManager, "root-ca-file=" + file("ca.pem", "nothing", 0o644), "ca.pem"},
		{program.Etcd, "peer-key-file=" + open, "(mode 0644)"},
	} {
		c.EtcdArgs, c.APIServerArgs, c.ControllerManagerArgs = nil, nil, nil
		*passedThrough(&c, tt.program) = []string{tt.arg}
		_, err := merged(t, c)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: got %v, want none", tt.arg, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want %q", tt.arg, err, tt.want)
		case err != nil && strings.Contains(err.Error(), "secret-token"):
			t.Errorf("%s: the error quotes the secret: %v", tt.arg, err)
		}
	}
}

// A flag that kthwd relies on is not taken out, and the refusal says why.
func TestFlagsThatStay(t *testing.T) {
	for _, tt := range []struct{ program, arg, want string }{
		{program.APIServer, "secure-port-", "kthwd relies on this flag"},
		{program.APIServer, "authorization-mode-", "everybody may do everything"},
		{program.Etcd, "client-cert-auth-", "answers everybody"},
		{program.Etcd, "nonsense-", "kthwd sets no such flag"},
		{program.Scheduler, "leader-elect-", "kthwd holds the lease"},
	} {
		c := testConfig(t)
		*passedThrough(&c, tt.program) = []string{tt.arg}
		if _, err := merged(t, c); err == nil || !strings.Contains(err.Error(), "--"+tt.program+"-arg="+tt.arg+": ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.arg, err, tt.want)
		}
	}
}

func passedThrough(c *config.Controller, name string) *[]string {
	return map[string]*[]string{
		program.Etcd: &c.EtcdArgs, program.APIServer: &c.APIServerArgs,
		program.ControllerManager: &c.ControllerManagerArgs, program.Scheduler: &c.SchedulerArgs,
	}[name]
}

// A check leaves nothing behind.
func TestCheckWritesNothing(t *testing.T) {
	c := testConfig(t)
	c.TracingEndpoint = net.JoinHostPort("127.0.0.1", "4317")
	l, err := merged(t, c)
	if err != nil {
		t.Fatal(err)
	}
	if l.Args[program.APIServer] == nil {
		t.Error("got no arguments")
	}
	if left, _ := os.ReadDir(filepath.Dir(c.DataDir)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
