package agree

import (
	"testing"

	"kthwd/appliance/flagvalue"
	"kthwd/appliance/program"
)

// reading is what the appliance gives Controllers.
func reading() func(string, string, ...string) (string, string, bool) {
	var reader flagvalue.Reader
	return func(name, key string, values ...string) (string, string, bool) {
		r, ok := reader.Read(name, key, values...)
		return r.Value, r.Default, ok
	}
}

// Two spellings of a value that must agree are no difference, nor is a default that is written
// out; two values are one, also beside a controller with a third spelling. "" is a flag that is not
// given.
func TestSpellings(t *testing.T) {
	const api, manager, etcd = program.APIServer, program.ControllerManager, program.Etcd
	c := &Controllers{Read: reading()}
	for _, tt := range []struct {
		id    string
		by    [3]string
		alike bool
	}{
		{api + " event-ttl", [3]string{"1h", "60m", ""}, true},
		{api + " event-ttl", [3]string{"1h", "60m", "2h"}, false},
		{api + " event-ttl", [3]string{"2h", "2h", ""}, false},
		{api + " anonymous-auth", [3]string{"true", "1", "t"}, true},
		{api + " anonymous-auth", [3]string{"true", "1", "0"}, false},
		{api + " enable-admission-plugins", [3]string{"A,B", "B,A", "B,A,B"}, true},
		{api + " enable-admission-plugins", [3]string{"A,B", "B,A", "A"}, false},
		{api + " service-cluster-ip-range", [3]string{"10.32.0.0/24", "10.32.0.1/24", "10.32.0.0/24"}, true},
		{api + " service-cluster-ip-range", [3]string{"10.32.0.0/24", "10.32.0.0/16", "10.32.0.0/24"}, false},
		{api + " service-cluster-ip-range", [3]string{"fd00::/108", "fd00:0::/108", "FD00::/108"}, true},
		{api + " feature-gates", [3]string{"A=true,B=true", "B=1,A=t", "kube:A=true,B=true"}, true},
		{api + " runtime-config", [3]string{"api/all=true", "api/all", "api/all=1"}, true},
		{manager + " controllers", [3]string{"", "*", ""}, true},
		{manager + " controllers", [3]string{"", "*,-ttl", "*"}, false},
		{manager + " node-cidr-mask-size", [3]string{"24", "0x18", "24"}, true},
		{etcd + " heartbeat-interval", [3]string{"100", "", "0x64"}, true},
		{etcd + " auto-compaction-retention", [3]string{"5h", "5", "300m"}, true},
		{etcd + " auto-compaction-retention", [3]string{"5m", "5", "5m"}, false},
		{api + " of-the-future", [3]string{"a", "a", "a"}, true},
	} {
		all := map[string]record{}
		for i, name := range []string{"c0", "c1", "c2"} {
			r := record{Plain: map[string]string{}}
			if tt.by[i] != "" {
				r.Plain[tt.id] = tt.by[i]
			}
			all[name] = r
		}
		for range 2 { // the second one from what the first one has read
			if rows := compare(all, c.reads); (len(rows) == 0) != tt.alike {
				t.Errorf("--%s %q: got %+v, want alike: %t", tt.id, tt.by, rows, tt.alike)
			}
		}
	}
}

// What a controller publishes of a flag that should agree is what the program reads in it: one
// spelling, and nothing where that is its default.
func TestGiven(t *testing.T) {
	given := func(args ...program.Arg) map[string]given {
		return (&Controllers{Read: reading(), Args: map[string][]program.Arg{program.APIServer: args}}).givenOnce()
	}
	a := given(program.Arg{Key: "audit-log-maxage", Value: "030"}, program.Arg{Key: "request-timeout", Value: "60s"},
		program.Arg{Key: "event-ttl", Value: "2h"}, program.Arg{Key: "event-ttl", Value: "3h"}, program.Arg{Key: "api-audiences", Value: "a"}, program.Arg{Key: "api-audiences", Value: "b"})
	b := given(program.Arg{Key: "audit-log-maxage", Value: "24"}, program.Arg{Key: "request-timeout", Value: "2m"})
	const api = program.APIServer + " "
	for text, want := range map[string]string{
		a[api+"audit-log-maxage"].read: b[api+"audit-log-maxage"].read, // octal: pflag reads it so
		a[api+"event-ttl"].written:     "3h",
		a[api+"api-audiences"].written: "a,b",
	} {
		if text != want {
			t.Errorf("got %q, want %q", text, want)
		}
	}
	if !a[api+"request-timeout"].isDefault || b[api+"request-timeout"].isDefault {
		t.Error("the default of request-timeout is 1m0s, in each spelling")
	}
}
