package events

import (
	"log/slog"
	"testing"
	"time"

	"kthwd/appliance/program"
	"kthwd/appliance/status"
)

func TestNotable(t *testing.T) {
	w := New("c0", nil, nil, slog.New(slog.DiscardHandler))
	for _, tt := range []struct {
		e    status.Event
		want string // reason; "" for none
	}{
		{status.Event{Object: status.ObjectQuorum, To: status.QuorumThere}, ""}, // the first one
		{status.Event{Object: program.Scheduler, From: "waiting", To: "starting"}, ""},
		{status.Event{Object: program.Scheduler, From: "ready", To: "starting", Reason: "begins again after: lease lost", RestartReason: "lease_lost"}, "TermLost"},
		{status.Event{Object: program.Etcd, From: "ready", To: "waiting"}, ""},
		{status.Event{Object: status.ObjectQuorum, To: status.QuorumLost}, "QuorumLost"},
		{status.Event{Object: status.ObjectQuorum, To: status.QuorumThere}, "QuorumBack"},
		{status.Event{Object: status.ObjectQuorum, To: status.QuorumThere}, ""},
	} {
		got, ok := w.judge(tt.e)
		if got.reason != tt.want || ok != (tt.want != "") {
			t.Errorf("%+v: got %+v, %v; want %q", tt.e, got, ok, tt.want)
		}
	}
	for range 2 * eventQueue { // nobody reads
		w.Seen(status.Event{Object: status.ObjectQuorum, To: status.QuorumLost})
	}
}

func TestExpiringEvents(t *testing.T) {
	now := time.Now()
	w := New("c0", nil, func() []status.Certificate {
		return []status.Certificate{
			{File: "/d/soon.pem", Subject: "CN=a", NotAfter: now.Add(time.Hour)},
			{File: "/d/late.pem", NotAfter: now.Add(60 * 24 * time.Hour)},
			{File: "/d/key.pem", NotAfter: now, Use: "signing"},
			{File: "/d/missing.pem", Problem: "no such file"},
		}
	}, slog.New(slog.DiscardHandler))
	if got := w.expiring(now); len(got) != 1 || got[0].reason != "CertificateExpires" {
		t.Errorf("got %+v", got)
	}
	if got := w.expiring(now.Add(time.Hour)); len(got) != 0 {
		t.Errorf("an hour later: got %+v", got)
	}
	if got := w.expiring(now.Add(25 * time.Hour)); len(got) != 1 {
		t.Errorf("a day later: got %+v", got)
	}
}
