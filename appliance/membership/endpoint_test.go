package membership

import (
	"strings"
	"testing"

	"kthwd/appliance/member"
	"kthwd/appliance/pki"
	"kthwd/appliance/version"
	"kthwd/test/harness"
)

// aSecret is the secret of aJoin's token.
var aSecret = make([]byte, 16)

// aJoin is the join of a valid token.
func aJoin(id string) join {
	return join{ID: id, Name: "c1", Address: "192.0.2.1", From: "192.0.2.1", Secret: member.Token{ID: id, Secret: aSecret}.Hash(), valid: true}
}

// A token is bound to its first joiner by that one's random name. Before, a request without a name
// left the token unbound, so that it gave the cluster's keys to any number of further requests.
func TestTokenIsBoundToItsFirstJoiner(t *testing.T) {
	first := strings.Repeat("a1", 16)
	const notItsName, usedAlready = "has no name of a kthwd join", "was used already"
	for _, c := range []struct{ name, joiner, holder, refusal string }{
		{"first", first, "", ""},
		{"first again", first, first, ""},
		{"another", strings.Repeat("b2", 16), first, usedAlready},
		{"empty", "", "", notItsName},
		{"empty, afterwards", "", first, notItsName},
		{"short", "a1", "", notItsName},
		{"long", first + "a1", "", notItsName},
		{"no number", strings.Repeat("x", 32), "", notItsName},
		{"spaces", strings.Repeat(" ", 32), "", notItsName},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &Members{layout: pki.Layout{Dir: t.TempDir()}}
			j := aJoin("a1b2c3d4e5f6")
			j.Holder = c.holder
			err := m.judge(j, member.Request{ID: j.ID, Secret: aSecret, Joiner: c.joiner, KnowsEtcdCA: true, Versions: version.Member(""), From: j.From + ":1000"})
			harness.CheckRefusal(t, err, c.refusal, "")
		})
	}
	if name := member.NewJoiner(); !member.IsJoiner(name) || name == member.NewJoiner() {
		t.Errorf("the name of a joiner: %q", name)
	}
}
