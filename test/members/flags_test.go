package members

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"kthwd/appliance/agree"
	"kthwd/appliance/status"
)

// A service range that only one of three controllers has is a finding on each, with the values.
// Nothing else that differs between machines is one, nor are other spellings of the same values.
func TestFlagsThatMustAgree(t *testing.T) {
	if !requireNetwork(t) {
		return
	}
	c := newCluster(t, 3)
	c1 := c.machines[1]
	file := strings.Replace(read(t, c1.file()), "service-cluster-ip-range: 10.32.0.0/24", "service-cluster-ip-range: 10.32.0.0/16", 1)
	if err := os.WriteFile(c1.file(), []byte(file), 0o600); err != nil || !strings.Contains(file, "10.32.0.0/16") {
		t.Fatalf("%v:\n%s", err, file)
	}
	c2 := c.machines[2]
	spellings := "kube-apiserver-arg: [event-ttl=60m, audit-log-maxage=0x1e, authorization-mode=RBAC, authorization-mode=Node]\n"
	if err := os.WriteFile(c2.file(), []byte(read(t, c2.file())+spellings), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, c.machines...)
	for _, m := range c.machines {
		for _, program := range []string{"kube-apiserver", "kube-controller-manager"} {
			want := "the controllers differ in --service-cluster-ip-range of " + program + ": c0 10.32.0.0/24, c1 10.32.0.0/16, c2 10.32.0.0/24"
			m.says(t, want, func(r status.Report) bool { return strings.Contains(digest(r), want) })
		}
	}
	var rows []agree.Row
	if err := c1.client().Do(t.Context(), http.MethodGet, "/config/diff", nil, &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 || rows[0].Class != agree.Must || rows[1].Class != agree.Must {
		t.Errorf("got %+v, want the two flags only", rows)
	}
}

// A cluster that takes over profile cis, one controller after the other, says how far it is on
// each of them.
func TestProfileOfEachController(t *testing.T) {
	if !requireNetwork(t) {
		return
	}
	c := newCluster(t, 3)
	c1 := c.machines[1]
	if err := os.WriteFile(c1.file(), []byte(read(t, c1.file())+"profile: cis\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, c.machines...)
	for _, m := range c.machines {
		const want = "c1 runs profile cis, c0 and c2 the guide's"
		m.says(t, want, func(r status.Report) bool {
			return strings.Contains(digest(r), want) && !strings.Contains(digest(r), "runtime-config")
		})
	}
}
