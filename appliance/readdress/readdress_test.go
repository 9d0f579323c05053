package readdress

import (
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcdfiles"
)

// An address that cannot be a controller's is refused, with what would be one.
func TestRefuse(t *testing.T) {
	c := &Change{
		self: etcdfiles.StoredMember{Name: "c2", PeerURLs: []string{"https://10.0.1.48:2380"}}, old: "10.0.1.48",
	}
	for address, want := range map[string]string{
		"127.0.0.1":      "127.0.0.1 is loopback, which no other machine reaches",
		"::1":            "::1 is loopback",
		"0.0.0.0":        "is not an address that other machines can reach",
		"::":             "is not an address that other machines can reach",
		"224.0.0.1":      "is not an address that other machines can reach",
		"fe80::1%eth0":   "has a zone",
		"c2.example.com": "is not an IP address",
		"10.0.1.300":     "is not an IP address",
		"10.0.1.50:2380": "is not an IP address",
		"10.0.1.0/24":    "is not an IP address",
		"":               "is not an IP address",
		"192.0.2.77":     "this machine does not have the address 192.0.2.77",
		"2001:db8::77":   "this machine does not have the address 2001:db8::77",
	} {
		err := c.refuse(address)
		if hint, _ := advice.Of(err); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(hint, "ip address lists") {
			t.Errorf("%q: got %v, hint %q; want %q", address, err, hint, want)
		}
	}
	if c.old = "127.0.0.2"; c.refuse("127.0.0.3") != nil {
		t.Error("from one loopback address to another: refused")
	}
}

// The address of another controller is refused; on loopback all may have one.
func TestTaken(t *testing.T) {
	c := &Change{others: []etcdfiles.StoredMember{
		{Name: "c1", PeerURLs: []string{"https://10.0.1.35:2380"}}, {Name: "c0", PeerURLs: []string{"https://127.0.0.1:2380"}}, {Name: "c3", PeerURLs: []string{"https://[fd00::3]:2380"}},
	}}
	for address, want := range map[string]string{
		"10.0.1.35": "10.0.1.35 is the address of another controller, c1", "fd00::3": "fd00::3 is the address of another controller, c3",
		"127.0.0.1": "", "10.0.1.36": "",
	} {
		c.o.Address = address
		err := c.taken()
		if hint, _ := advice.Of(err); want == "" && err != nil || want != "" && (err == nil || err.Error() != want || !strings.Contains(hint, "ip address lists")) {
			t.Errorf("%q: got %v, hint %q; want %q", address, err, hint, want)
		}
	}
}

// The list on which a quorum agrees comes first, then the one of the latest term.
func TestBetterAnswer(t *testing.T) {
	of := func(term uint64, agreed bool) answer {
		return answer{&clientv3.MemberListResponse{Header: &etcdserverpb.ResponseHeader{RaftTerm: term}}, agreed}
	}
	lists := []answer{{}, of(3, false), of(2, true), of(5, false)}
	slices.SortStableFunc(lists, answer.compare)
	for i, term := range []uint64{2, 5, 3} {
		if lists[i].list == nil || lists[i].list.Header.RaftTerm != term {
			t.Errorf("%d: got %+v, want term %d", i, lists[i], term)
		}
	}
}

// Only what is about this machine changes in its file, and the rest that names the old address
// is told.
func TestEdit(t *testing.T) {
	for name, tt := range map[string]struct{ file, want, rest string }{
		"as kthwd writes it": {
			"# The controller c2.\nname: c2\nadvertise-address: 10.0.1.48\n\n# All.\ninitial-cluster: [c0=10.0.1.73, c1=10.0.1.4, c2=10.0.1.48]\nhealth-address: \":80\"\n",
			"# The controller c2.\nname: c2\nadvertise-address: 10.0.1.50\n\n# All.\ninitial-cluster: [c0=10.0.1.73, c1=10.0.1.4, c2=10.0.1.50]\nhealth-address: \":80\"\n", "",
		},
		"a list, comments, other keys": {
			"advertise-address: \"10.0.1.48\" # eth0\nbind-address: 10.0.1.48\nhealth-address: '10.0.1.48:8080'\ninitial-cluster:\n  - c2=10.0.1.48\n  - xc2=10.0.1.48\nsubject-alt-name: [10.0.1.48]\n# was 10.0.1.48\n",
			"advertise-address: 10.0.1.50 # eth0\nbind-address: 10.0.1.50\nhealth-address: '10.0.1.50:8080'\ninitial-cluster:\n  - c2=10.0.1.50\n  - xc2=10.0.1.48\nsubject-alt-name: [10.0.1.48]\n# was 10.0.1.48\n",
			"- xc2=10.0.1.48|subject-alt-name: [10.0.1.48]",
		},
		"changed by hand already": {"advertise-address: 10.0.1.50\ninitial-cluster: c2=10.0.1.50\n", "advertise-address: 10.0.1.50\ninitial-cluster: c2=10.0.1.50\n", ""},
		"not said":                {"name: c2", "name: c2\nadvertise-address: 10.0.1.50\n", ""},
		"a longer address":        {"advertise-address: 10.0.1.48\nmetrics-address: 10.0.1.480:1\n", "advertise-address: 10.0.1.50\nmetrics-address: 10.0.1.480:1\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, rest := edit([]byte(tt.file), "c2", "10.0.1.48", "10.0.1.50", nil)
			if string(got) != tt.want || strings.Join(rest, "|") != tt.rest {
				t.Errorf("got:\n%s\nrest %q\nwant:\n%s\nrest %q", got, rest, tt.want, tt.rest)
			}
		})
	}
	if got, _ := edit([]byte("advertise-address: 10.0.1.48\n"), "c2", "10.0.1.48", "2001:db8::1", nil); string(got) != "advertise-address: \"2001:db8::1\"\n" {
		t.Errorf("IPv6: got %q", got)
	}
	// c1 has moved, and c2 comes to its old address.
	file := "advertise-address: 10.0.1.48\ninitial-cluster: [c0=10.0.1.73, c1=10.0.1.50, c11=10.0.1.9, c2=10.0.1.48]\n"
	want := "advertise-address: 10.0.1.50\ninitial-cluster: [c0=10.0.1.73, c1=10.0.1.51, c11=10.0.1.9, c2=10.0.1.50]\n"
	if got, _ := edit([]byte(file), "c2", "10.0.1.48", "10.0.1.50", map[string]string{"c1": "10.0.1.51", "c0": "10.0.1.73"}); string(got) != want {
		t.Errorf("another one has moved: got %q, want %q", got, want)
	}
}
