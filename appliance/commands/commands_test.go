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
	for _, tt := range []struct {
		program string
		users   []string
		gone    []string // kthwd's flags
		left    string   // an argument that is there
	}{
		{program.APIServer, []string{"authorization-config=" + authz}, []string{"authorization-mode"}, "--authorization-config=" + authz},
		{program.APIServer, []string{"disable-admission-plugins=LimitRanger,ResourceQuota"}, nil, "--enable-admission-plugins=NamespaceLifecycle,NodeRestriction,ServiceAccount,DefaultStorageClass"},
		{program.APIServer, []string{"runtime-config-"}, []string{"runtime-config"}, ""},
		{program.APIServer, []string{"--audit_log_path-", "--audit-policy-file-"}, []string{"audit-log-path", "audit-policy-file"}, ""},
		{program.APIServer, []string{"encryption-provider-config-"}, []string{"encryption-provider-config"}, ""},
		{program.ControllerManager, []string{"cluster-signing-kubelet-serving-cert-file=/x.pem", "cluster-signing-kubelet-serving-key-file=/x-key.pem"},
			[]string{"cluster-signing-cert-file", "cluster-signing-key-file"}, "--cluster-signing-legacy-unknown-key-file="},
		{program.Etcd, []string{"discovery-srv=example.com"}, []string{"initial-cluster"}, ""},
		{program.Etcd, []string{"discovery-endpoints=http://127.0.0.1:1", "discovery-token=t"}, []string{"initial-cluster"}, ""},
		{program.Etcd, []string{"experimental-snapshot-catchup-entries=7"}, []string{"snapshot-catchup-entries"}, ""},
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
