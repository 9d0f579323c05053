package flagvalue

import (
	"sync"
	"testing"

	utilfeature "k8s.io/apiserver/pkg/util/feature"

	"kthwd/appliance/program"
)

// Two spellings of a value have one reading, and two values have two.
func TestRead(t *testing.T) {
	const api, manager, etcd = program.APIServer, program.ControllerManager, program.Etcd
	var r Reader
	for _, tt := range []struct {
		name, key, a, b string
		same            bool
	}{
		{api, "event-ttl", "1h", "60m", true},
		{api, "event-ttl", "10s", "10000ms", true},
		{api, "event-ttl", "1h", "61m", false},
		{api, "anonymous-auth", "true", "1", true},
		{api, "anonymous-auth", "true", "F", false},
		{manager, "allocate-node-cidrs", "t", "TRUE", true},
		{api, "enable-admission-plugins", "NodeRestriction,EventRateLimit", "EventRateLimit,NodeRestriction", true},
		{api, "enable-admission-plugins", "NodeRestriction", "NodeRestriction,NodeRestriction", true},
		{api, "enable-admission-plugins", "NodeRestriction", "EventRateLimit", false},
		{api, "authorization-mode", "Node,RBAC", "RBAC,Node", true},
		{api, "authorization-mode", "Webhook,RBAC", "RBAC,Webhook", false},
		{api, "service-account-issuer", "https://a,https://b", "https://b,https://a", false},
		{api, "service-cluster-ip-range", "10.32.0.0/24", "10.32.0.7/24", true},
		{api, "service-cluster-ip-range", "10.32.0.0/24", "10.32.0.0/16", false},
		{api, "service-cluster-ip-range", "fd00:0:0::/108", "FD00::/108", true},
		{api, "service-cluster-ip-range", "10.32.0.0/24,fd00::/108", "10.32.0.0/24,fd00:0::/108", true},
		{api, "service-cluster-ip-range", "10.32.0.0/24,fd00::/108", "fd00::/108,10.32.0.0/24", false},
		{manager, "cluster-cidr", "2001:db8:0:0::/56", "2001:db8::/56", true},
		{api, "service-node-port-range", "30000-32767", "30000+2767", true},
		{api, "service-node-port-range", "30000-32767", "30000-32766", false},
		{api, "runtime-config", "api/all=true", "api/all", true},
		{api, "runtime-config", "api/beta=1,api/ga=true", "api/ga=T,api/beta=true", true},
		{api, "runtime-config", "api/all=true", "api/all=false", false},
		{api, "feature-gates", "A=true,B=false", "kube:B=0,:A=1", true},
		{api, "feature-gates", "A=true", "A=false", false},
		{api, "feature-gates", "A=true", "wardle:A=true", false},
		{manager, "controllers", "*,-ttl,bootstrapsigner", "bootstrapsigner,*,-ttl", true},
		{manager, "controllers", "ttl,-ttl", "-ttl,ttl", false},
		{api, "bind-address", "::1", "0:0::1", true},
		{api, "external-hostname", "a", "b", false},
		{api, "service-account-jwks-uri", "https://[fd00:0::1]:6443/jwks", "https://[fd00::1]:6443/jwks", true},
		{etcd, "heartbeat-interval", "100", "0x64", true},
		{etcd, "quota-backend-bytes", "8589934592", "8589934593", false},
		{etcd, "auto-compaction-retention", "5m", "300s", true},
	} {
		a, okA := r.Read(tt.name, tt.key, tt.a)
		b, okB := r.Read(tt.name, tt.key, tt.b)
		if !okA || !okB || (a.Value == b.Value) != tt.same {
			t.Errorf("--%s=%s and %s: got %q (%t) and %q (%t), want the same: %t", tt.key, tt.a, tt.b, a.Value, okA, b.Value, okB, tt.same)
		}
	}
}

// A list that is given in parts is one, of another flag the last value counts, and a default is
// one also where it is written out.
func TestReadSeveral(t *testing.T) {
	var r Reader
	for _, tt := range []struct {
		name, key string
		values    []string
		want      Reading
	}{
		{program.APIServer, "api-audiences", []string{"b", "a"}, Reading{"a,b", ""}},
		{program.APIServer, "event-ttl", []string{"2h", "60m"}, Reading{"1h0m0s", "1h0m0s"}},
		{program.APIServer, "event-ttl", nil, Reading{"1h0m0s", "1h0m0s"}},
		{program.ControllerManager, "controllers", nil, Reading{"*", "*"}},
		{program.Scheduler, "feature-gates", nil, Reading{}},
	} {
		for range 2 { // no reading is left in the next one
			if got, ok := r.Read(tt.name, tt.key, tt.values...); !ok || got != tt.want {
				t.Errorf("--%s %q: got %+v, %t, want %+v", tt.key, tt.values, got, ok, tt.want)
			}
		}
	}
}

// What cannot be read is left to a comparison of texts, and nothing is written where the running
// programs would see it.
func TestReadNot(t *testing.T) {
	var r Reader
	var all sync.WaitGroup
	for _, tt := range [][3]string{
		{program.APIServer, "gone", "a"}, {program.APIServer, "event-ttl", "soon"}, {program.APIServer, "feature-gates", "A=perhaps"},
		{program.APIServer, "emulated-version", "1.36"}, {"kthwd", "profile", "cis"},
	} {
		all.Go(func() {
			if got, ok := r.Read(tt[0], tt[1], tt[2]); ok {
				t.Errorf("--%s=%s: got %+v", tt[1], tt[2], got)
			}
		})
	}
	all.Wait()
	if _, ok := r.Read(program.APIServer, "feature-gates", "AllAlpha=true"); !ok || utilfeature.DefaultFeatureGate.Enabled("AllAlpha") {
		t.Error("a gate that was read is set")
	}
}
