package membership

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"kthwd/appliance/member"
	"kthwd/appliance/membership/joins"
	"kthwd/appliance/membership/refusals"
	"kthwd/appliance/pki"
	"kthwd/appliance/version"
	"kthwd/test/harness"
)

// aSecret is the secret of aJoin's token.
var aSecret = make([]byte, 16)

// aJoin is the join of a valid token.
func aJoin(id string) joins.Join {
	return joins.Join{ID: id, Name: "c1", Address: "192.0.2.1", From: "192.0.2.1", Secret: member.Token{ID: id, Secret: aSecret}.Hash(), TTL: time.Hour, Made: time.Now(), Valid: true}
}

// Each refusal is counted by its reason, and a second use of a token is a finding for an hour.
func TestRefusedJoinsAreCounted(t *testing.T) {
	m := &Members{layout: pki.Layout{Dir: t.TempDir()}, refused: refusals.NewCounter()}
	first, second := strings.Repeat("a1", 16), strings.Repeat("b2", 16)
	good := member.Request{ID: "a1b2c3d4e5f6", Secret: aSecret, Joiner: second, KnowsEtcdCA: true, Versions: version.Member("")}
	for _, c := range []struct {
		reason string
		change func(j *joins.Join, in *member.Request)
	}{
		{refusals.ReasonSecret, func(_ *joins.Join, in *member.Request) { in.Secret = []byte("x") }},
		{refusals.ReasonForm, func(_ *joins.Join, in *member.Request) { in.Joiner = "" }},
		{refusals.ReasonExpired, func(j *joins.Join, _ *member.Request) { j.Valid = false }},
		{refusals.ReasonExpired, func(j *joins.Join, _ *member.Request) { j.Made = j.Made.Add(-2 * j.TTL) }}, // its lease was granted again
		{refusals.ReasonVersion, func(_ *joins.Join, in *member.Request) { in.Versions.Etcd = "1.0.0" }},
		{refusals.ReasonAddress, func(j *joins.Join, _ *member.Request) { j.From = "192.0.2.9" }},
		{refusals.ReasonUsed, func(j *joins.Join, _ *member.Request) { j.Holder = first }},
		{refusals.ReasonUsed, func(j *joins.Join, _ *member.Request) { j.Joiner = first }},
	} {
		if c.reason != refusals.ReasonUsed && len(m.Findings()) > 0 {
			t.Errorf("before %s: %v", c.reason, m.Findings())
		}
		handler := joinAnswer(slog.New(slog.DiscardHandler), refusals.NewLimit(), m.refused, func(_ context.Context, in member.Request) (member.Files, error) {
			j := aJoin(in.ID)
			c.change(&j, &in)
			return member.Files{}, m.judge(j, in)
		})
		before := testutil.ToFloat64(m.refused.Total.WithLabelValues(c.reason))
		body, err := json.Marshal(good)
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodPost, member.FilesPath, bytes.NewReader(body))
		r.RemoteAddr = "192.0.2.1:1000"
		handler(httptest.NewRecorder(), r)
		if got := testutil.ToFloat64(m.refused.Total.WithLabelValues(c.reason)); got != before+1 {
			t.Errorf("%s is counted %v times, want %v", c.reason, got, before+1)
		}
	}
	if all := m.Findings(); len(all) != 1 || all[0].Kind != refusals.KindReused || !strings.Contains(all[0].Text, "from 192.0.2.1: the token was used already") {
		t.Errorf("findings: %+v", all)
	}
	if all := m.refused.Findings(time.Now().Add(2 * refusals.ReusedFor)); len(all) > 0 {
		t.Errorf("two hours later: %+v", all)
	}
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
