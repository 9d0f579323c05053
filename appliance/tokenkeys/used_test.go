package tokenkeys

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// Tokens are counted by their key, and the accounts that use the watched one are named, the newest
// first; users that are no service account are nobody's tokens.
func TestAccepted(t *testing.T) {
	w := New(Config{})
	old, other := newPair(t), newPair(t)
	token := func(p pair) string { return p.token(t, p.id, issuer, time.Now().Add(time.Hour)) }
	const web, job = "system:serviceaccount:shop:web", "system:serviceaccount:shop:job"
	w.Accepted(token(old), web, "10.0.0.7:4711")
	if w.UseOf(old.id) != nil {
		t.Error("the use of a key that is not watched is known")
	}
	w.WatchUse(old.id)
	if u := w.UseOf(old.id); u == nil || u.Count != 0 || u.Newest() != "nobody" {
		t.Errorf("at first: got %+v", u)
	}
	w.Accepted(token(old), web, "10.0.0.7:4711")
	w.Accepted(token(old), job, "")
	w.Accepted(token(other), job, "10.0.0.9:1")
	w.Accepted(token(old), "jane", "10.0.0.8:1") // another authenticator's user
	w.Accepted("opaque", web, "10.0.0.8:1")
	w.WatchUse(old.id)
	u := w.UseOf(old.id)
	if u.Count != 2 || len(u.Clients) != 2 || u.Newest() != job+" at a TokenReview, and another account" || u.Clients[1].Address != "10.0.0.7" {
		t.Errorf("got %+v, newest %q", u, u.Newest())
	}
	for id, want := range map[string]float64{old.id: 3, other.id: 1} {
		if got := testutil.ToFloat64(w.accepted.WithLabelValues(id)); got != want {
			t.Errorf("%s: counted %v, want %v", id, got, want)
		}
	}
	for i := range 2 * clientsMax {
		w.Accepted(token(old), fmt.Sprintf("system:serviceaccount:shop:n%d", i), "10.0.0.7:4711")
	}
	u = w.UseOf(old.id)
	if len(u.Clients) != clientsMax || !strings.HasPrefix(u.Newest(), fmt.Sprintf("system:serviceaccount:shop:n%d ", 2*clientsMax-1)) {
		t.Errorf("got %d clients, the newest %s", len(u.Clients), u.Newest())
	}
	if slices.ContainsFunc(u.Clients, func(c Client) bool { return c.Account == web }) {
		t.Error("the oldest client was kept")
	}

	again := New(Config{}) // a process that comes after this one
	again.Resume(old.id, *u)
	again.WatchUse(old.id)
	again.Accepted(token(old), web, "10.0.0.7:4711")
	again.Resume(other.id, *u)
	again.Resume(old.id, *u)
	r := again.UseOf(old.id)
	if r.Count != u.Count+1 || len(r.Clients) != clientsMax || r.Clients[0].Account != web || !r.First.Equal(u.First) || !r.Since.After(u.Since) {
		t.Errorf("after a restart: got %d uses by %d clients, the newest %s, watched since %v and %v; before %v", r.Count, len(r.Clients), r.Newest(), r.First, r.Since, u.Since)
	}

	w.WatchUse(other.id)
	if w.UseOf(old.id) != nil || w.UseOf(other.id).Count != 0 {
		t.Error("another watched key has the use of the one before")
	}
}
