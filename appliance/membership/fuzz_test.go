package membership

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/member"
	"kthwd/appliance/membership/joins"
	"kthwd/appliance/membership/refusals"
	"kthwd/appliance/pki"
	"kthwd/appliance/version"
)

// FuzzJoinRequest: the join port answers any body with a refusal, in one line, that repeats
// no secret of the request.
func FuzzJoinRequest(f *testing.F) {
	for _, s := range []string{"", "{}", "null", `{"id":"a1","secret":"czNjcmV0c2VjcmV0","joiner":"x","versions":{}}`, strings.Repeat("[", 40000), `{"id":"\u001b[2J\n"}`, `{"peerPort":99999999999}`, `{"from":"10.0.0.1:1"}`,
		`{"id":"a1b2c3d4e5f6","secret":"AAAAAAAAAAAAAAAAAAAAAA==","joiner":"","knowsEtcdCA":true}`, `{"id":"a1b2c3d4e5f6","secret":"AAAAAAAAAAAAAAAAAAAAAA==","joiner":"0123456789abcdef0123456789abcdef","knowsEtcdCA":true}`} {
		f.Add([]byte(s))
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	m := &Members{layout: pki.Layout{Dir: f.TempDir()}}
	f.Fuzz(func(t *testing.T, body []byte) {
		var seen member.Request
		handler := joinAnswer(log, refusals.NewLimit(), refusals.NewCounter(), func(_ context.Context, in member.Request) (member.Files, error) {
			seen = in
			in.Versions = version.Member("")
			if m.judge(aJoin(in.ID), in) == nil && !member.IsJoiner(in.Joiner) {
				t.Errorf("a token can be used by the joiner %q, to whom it is not bound", in.Joiner)
			}
			return member.Files{}, &member.Refusal{Text: "the token is not known here", Advice: newToken}
		})
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, member.FilesPath, strings.NewReader(string(body)))
		r.RemoteAddr = "192.0.2.1:1000"
		handler(w, r)
		if w.Code != http.StatusConflict && w.Code != http.StatusBadRequest {
			t.Errorf("answered %d", w.Code)
		}
		if w.Code == http.StatusConflict && seen.From != r.RemoteAddr {
			t.Errorf("the request names its own sender: %q", seen.From)
		}
	})
}

// FuzzJoinRecord: no record from etcd counts as a controller's without its seal, and the seal
// covers what it says.
func FuzzJoinRecord(f *testing.F) {
	key := []byte("a key that etcd does not have")
	// A worker process computes this record again, perhaps in the next second.
	made := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	sealed := joins.Join{ID: "a1b2c3d4e5f6", Name: "c1", Address: "10.0.0.1", CAKey: false, Made: made}
	sealed.Seal = sealed.ComputeSeal(key)
	data, err := json.Marshal(sealed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(strings.Replace(string(data), `"caKey":false`, `"caKey":true`, 1)))
	f.Add([]byte(`{"seal":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var j joins.Join
		if json.Unmarshal(data, &j) != nil || !hmac.Equal(j.Seal, j.ComputeSeal(key)) {
			return
		}
		if j.Name != sealed.Name || j.Address != sealed.Address || j.CAKey != sealed.CAKey || j.ID != sealed.ID || j.Made.Unix() != sealed.Made.Unix() {
			t.Errorf("a record that no controller has sealed: %+v", j)
		}
	})
}
