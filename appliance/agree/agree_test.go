package agree

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/program"
)

func asWritten(r record, id string) string { return r.Plain[id] }

// One flag of each class differs: what must agree is a finding with both values, what should
// agree is shown without a value, and what differs by nature is not compared.
func TestCompare(t *testing.T) {
	all := map[string]record{
		"c0": {Plain: map[string]string{program.APIServer + " service-cluster-ip-range": "10.32.0.0/24", program.APIServer + " event-ttl": "1h"}, Hashed: map[string]string{program.APIServer + " audit-log-maxage": "#aa"}, Versions: map[string]string{"kthwd": "v1"}},
		"c1": {Plain: map[string]string{program.APIServer + " service-cluster-ip-range": "10.33.0.0/24", program.APIServer + " event-ttl": "1h"}, Hashed: map[string]string{program.APIServer + " audit-log-maxage": "#bb"}, Versions: map[string]string{"kthwd": "v1"}},
	}
	c := &Controllers{Log: slog.New(slog.DiscardHandler)}
	begin := time.Now()
	c.note(compare(all, asWritten), begin)
	c.note(compare(all, asWritten), begin.Add(time.Minute))
	if len(c.rows) != 2 || c.rows[0].Class != Must || c.rows[1].Class != Should {
		t.Fatalf("got %+v", c.rows)
	}
	f := c.Findings()
	if len(f) != 1 || !f[0].Since.Equal(begin) || !strings.HasSuffix(f[0].Text, "--service-cluster-ip-range of kube-apiserver: c0 10.32.0.0/24, c1 10.33.0.0/24") {
		t.Errorf("got %+v", f)
	}
	if len(Among(c.rows, []string{"c0"})) != 0 || len(Among(c.rows, []string{"c0", "c1"})) != 2 {
		t.Errorf("among one, and among both: got %+v, %+v", Among(c.rows, []string{"c0"}), Among(c.rows, []string{"c0", "c1"}))
	}
	delete(all, "c1")
	if c.note(compare(all, asWritten), begin); len(c.Findings()) != 0 || len(c.rows) != 0 {
		t.Errorf("a lone controller: got %+v", c.rows)
	}
}

// A flag that one controller is given and another is not differs, and so does a version; a record
// with flags that this kthwd does not know is shown, not judged.
func TestCompareMissing(t *testing.T) {
	rows := compare(map[string]record{
		"c0": {Plain: map[string]string{program.Scheduler + " feature-gates": "A=true"}, Versions: map[string]string{"kthwd": "v1"}},
		"c1": {Versions: map[string]string{"kthwd": "v2"}, Hashed: map[string]string{program.APIServer + " of-the-future": "#cc"}},
	}, asWritten)
	var got []string
	for _, r := range rows {
		got = append(got, string(r.Class)+": "+r.id()+": "+r.text())
	}
	want := "must agree: kube-scheduler feature-gates: c0 A=true, c1 the default|" +
		"should agree: kthwd version: c0 v1, c1 v2|should agree: kube-apiserver of-the-future: c0 the default, c1 #cc"
	if strings.Join(got, "|") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "|"), want)
	}
}

// While a cluster takes over a profile, one controller after the other, one finding says so in
// words, and none repeats it for a flag that the profile sets. What differs besides is one more.
func TestCompareProfiles(t *testing.T) {
	const apis, ranges = program.APIServer + " runtime-config", program.APIServer + " service-cluster-ip-range"
	all := map[string]record{
		"c0": {Profile: "guide", Plain: map[string]string{apis: "api/all=true", ranges: "10.32.0.0/24"}},
		"c1": {Profile: "cis", Plain: map[string]string{ranges: "10.32.0.0/24"}},
		"c2": {Profile: "guide", Plain: map[string]string{apis: "api/all=true", ranges: "10.32.0.0/24"}},
	}
	texts := func() (found []string) {
		c := &Controllers{Log: slog.New(slog.DiscardHandler)}
		c.note(compare(all, asWritten), time.Now())
		for _, f := range c.Findings() {
			found = append(found, f.Text)
		}
		return found
	}
	const moving = "c1 runs profile cis, c0 and c2 the guide's: the API groups that are served, and Pod Security, depend on the controller that answers"
	if got := texts(); len(got) != 1 || got[0] != moving {
		t.Errorf("got %q, want %q", got, moving)
	}
	all["c1"].Plain[ranges] = "10.33.0.0/24"
	if got := texts(); len(got) != 2 || !strings.Contains(strings.Join(got, "|"), "10.33.0.0/24") {
		t.Errorf("with another service range as well: got %q", got)
	}
	all["c1"].Plain[ranges] = "10.32.0.0/24"
	all["c2"].Plain[apis] = "api/beta=true"
	if got := texts(); len(got) != 2 || !strings.Contains(strings.Join(got, "|"), "api/beta=true") {
		t.Errorf("with two values under one profile: got %q", got)
	}
	// An older kthwd publishes no profile: the flags speak for themselves.
	all["c2"] = record{Plain: map[string]string{apis: "api/all=true", ranges: "10.32.0.0/24"}}
	if got := texts(); len(got) != 1 || !strings.Contains(got[0], "runtime-config") {
		t.Errorf("beside an older kthwd: got %q", got)
	}
	delete(all, "c1")
	if got := texts(); len(got) != 0 {
		t.Errorf("all with the same: got %q", got)
	}
}

// A record of etcd's content alone has no value but those of the table.
func TestOwnHasNoSecret(t *testing.T) {
	for name, keys := range must {
		for _, key := range keys {
			if strings.Contains(key, "file") && key != keyProfile || strings.Contains(key, "config") && key != "runtime-config" || strings.Contains(key, "password") || strings.Contains(key, "key") {
				t.Errorf("--%s of %s may hold a path or a secret, and its value is published", key, name)
			}
		}
	}
}

// HMACs of two keys say nothing of each other: while a rotation of the service account key has
// reached some controllers only, they are not compared. What is published as it is, is.
func TestCompareDuringARotation(t *testing.T) {
	const should, must = "kube-apiserver event-ttl-x", "kube-apiserver feature-gates"
	made := func(by, hashed, plain string) record {
		return record{HashedBy: by, Hashed: map[string]string{should: hashed}, Plain: map[string]string{must: plain}}
	}
	for _, tt := range []struct {
		name   string
		c0, c1 record
		want   int
	}{
		{"one key", made("k1", "#1", "a"), made("k1", "#2", "a"), 1},
		{"two keys", made("k1", "#1", "a"), made("k2", "#2", "a"), 0},
		{"two keys, and a flag that must agree", made("k1", "#1", "a"), made("k2", "#2", "b"), 1},
		{"an older kthwd, which names none", made("", "#1", "a"), made("k1", "#2", "a"), 1},
	} {
		if rows := compare(map[string]record{"c0": tt.c0, "c1": tt.c1}, asWritten); len(rows) != tt.want {
			t.Errorf("%s: got %+v, want %d rows", tt.name, rows, tt.want)
		}
	}
}
