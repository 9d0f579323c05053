package status

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/supervise"
	"kthwd/lb"
)

// healthyReport returns the report of one of three healthy controllers.
func healthyReport() Report {
	r := reports()["ready"]
	r.Quorum = &Quorum{Members: 3, Needed: 2, Active: 3, Leader: "one"}
	r.Member = &Member{Quota: 8 << 30, Size: 1 << 20, Fsync: Latency{P99: 3 * time.Millisecond, Count: 500}, Members: []MemberInfo{
		{ID: "1", Name: "one", Active: true, Local: true, Leader: true}, {ID: "2", Name: "two", Active: true}, {ID: "3", Name: "three", Active: true},
	}}
	r.Certificates = []Certificate{{File: "/d/ca.pem", Subject: "CN=ca", Use: "ca", NotAfter: noon.Add(100 * 24 * time.Hour)}}
	return r
}

// The findings of a load balancer have their kinds, and the beginnings that it knows.
func TestFindingsOfBalancer(t *testing.T) {
	r := balancing("ready")
	r.LB.Limits = []lb.LimitStatus{{Name: "ports", Since: noon}}
	r.LB.Names = []lb.NameStatus{{Name: "api.test:6443", Addresses: 1, Problem: "x", Since: noon}, {Name: "well.test:6443", Addresses: 2}, {Name: "none.test:6443", Problem: "among the backends"}}
	_, findings := Assess(r, noon)
	if len(findings) != 2 || findings[0].Kind != "lb_limit" || findings[1].Kind != "backend_name" || findings[0].Since != noon || findings[1].Since != noon {
		t.Errorf("got %+v", findings)
	}
}

func balancing(states ...string) Report {
	r := reports()["lb"]
	s := lb.Status{Ready: true, Check: "tcp"}
	for i, state := range states {
		s.Backends = append(s.Backends, lb.BackendStatus{Address: string(rune('a'+i)) + ":6443", State: state, LastCheck: "x"})
	}
	r.LB = &s
	return r
}

func TestAssess(t *testing.T) {
	change := func(f func(*Report)) Report {
		r := healthyReport()
		r.Components = append([]supervise.Status{}, r.Components...)
		f(&r)
		return r
	}
	for name, tt := range map[string]struct {
		r    Report
		want Health
		text string // of the first finding; "" for none
		do   string
	}{
		"nothing":          {healthyReport(), Healthy, "", ""},
		"a program begins": {change(func(r *Report) { r.Components[4].State = supervise.Starting }), Degraded, "kube-scheduler is starting", ""},
		"a program failed": {change(func(r *Report) { r.Components[4].State = supervise.Failed }), Degraded, "kube-scheduler is failed", "log"},
		"no API server": {change(func(r *Report) {
			r.Ready = false
			r.Components[2].State, r.Components[2].Reason = supervise.Starting, "building the API server"
		}), Down, "kube-apiserver is starting: building the API server", ""},
		"no quorum": {change(func(r *Report) {
			r.Ready = false
			r.Quorum = &Quorum{Members: 3, Needed: 2, Active: 1}
			r.Components[1].State = supervise.Waiting
		}), Down, "etcd has no quorum: 1 of 3 members can be reached, 2 are needed", "start the other controllers"},
		"a member away": {change(func(r *Report) {
			r.Quorum.Active = 2
			r.Member.Members[1].Active = false
		}), Degraded, "two cannot be reached: 2 of 3 etcd members are reachable, 2 are needed", "before another one fails"},
		"cut off from the others' quorum": {change(func(r *Report) {
			r.Ready = false
			r.Name, r.Quorum = "one", &Quorum{Members: 3, Needed: 2, Active: 1, Elsewhere: "two"}
		}), Down, "one is cut off from etcd's quorum, which the others have, with the leader two", "reach each other's etcd peer port"},
		"without any answer": {change(func(r *Report) {
			r.Ready = false
			r.Quorum = &Quorum{Members: 3, Needed: 2, Active: 1, Maybe: true, Advice: "run kthwd etcd recover"}
			r.Components[1].State = supervise.Waiting
		}), Down, "etcd has no quorum: 1 of 3 members can be reached", "the others may have a quorum: look there first; start the other controllers, and check that they can reach each other's etcd peer port; no data is lost meanwhile; run kthwd etcd recover"},
		"a leader that does not answer": {change(func(r *Report) {
			r.Name, r.Quorum.Leader, r.Quorum.Silent = "one", "two", true
		}), Down, "etcd's leader two does not answer one", ""},
		"a cut in one direction": {change(func(r *Report) {
			r.Name, r.Quorum.Leader, r.Member.Leader = "one", "two", false
			r.Member.Members[0].Leader, r.Member.Members[1].Leader, r.Member.Members[1].Unheard = false, true, noon
		}), Degraded, "one does not hear two, but two leads and commits", "requests are served meanwhile"},
		"a cut between followers": {change(func(r *Report) {
			r.Name, r.Quorum.Leader = "one", "two"
			r.Member.Members[2].Unheard = noon
		}), Degraded, "one does not hear three, but three takes part in the quorum that two leads", "etcd peer port at"},
		"a member that the leader misses": {change(func(r *Report) {
			r.Quorum.Leader, r.Quorum.Seen, r.Quorum.Active = "two", "two", 2
			r.Member.Members[2].Active = false
		}), Degraded, "three cannot be reached: 2 of 3 etcd members are reachable from the leader two", "before another one fails"},
		"an even number":   {change(func(r *Report) { r.Quorum.Members, r.Quorum.Active = 4, 4 }), Healthy, "etcd has 4 members", ""},
		"a slow disk":      {change(func(r *Report) { r.Member.Fsync.P99 = 184 * time.Millisecond }), Healthy, "etcd fsync p99 is 184 ms; the disk is too slow", "--etcd-data-dir"},
		"a very slow disk": {change(func(r *Report) { r.Member.Fsync.P99 = 600 * time.Millisecond }), Degraded, "etcd fsync p99 is 600 ms; the disk is too slow", ""},
		"a slowish disk":   {change(func(r *Report) { r.Member.Fsync.P99 = 84 * time.Millisecond }), Healthy, "etcd fsync p99 is 84 ms", "SSD"},
		"3 IOPS": {change(func(r *Report) {
			r.Member.Fsync = Latency{P99: 4 * time.Second, Count: 24, Slow: 24, Spent: 58 * time.Second, Window: time.Minute}
		}), Degraded, "etcd waits for its disk 96 % of the time, 2416 ms a write; the disk is too slow", "--etcd-data-dir"},
		"a busy disk without slow calls": {change(func(r *Report) {
			r.Member.Fsync = Latency{P99: 400 * time.Millisecond, Count: 90, Spent: 33 * time.Second, Window: time.Minute}
		}), Degraded, "etcd waits for its disk 55 % of the time", "--etcd-data-dir"},
		"slow calls now and then": {change(func(r *Report) {
			r.Member.Fsync = Latency{P99: 90 * time.Millisecond, Count: 40, Slow: 5, Spent: 9 * time.Second, Window: 5 * time.Minute}
		}), Healthy, "", ""},
		"slow calls again and again": {change(func(r *Report) {
			r.Member.Fsync = Latency{P99: 2 * time.Second, Count: 60, Slow: 20, Spent: 36 * time.Second, Window: 5 * time.Minute}
		}), Degraded, "etcd waits for its disk 12 % of the time, 600 ms a write", ""},
		"one slow call": {change(func(r *Report) {
			r.Member.Fsync = Latency{P99: 2 * time.Second, Count: 50, Slow: 1, Spent: 3 * time.Second, Window: time.Minute}
		}), Healthy, "", ""},
		"full, in another directory": {change(func(r *Report) { r.Member.Alarms, r.Names.Dir = []string{"NOSPACE"}, "/srv/k" }), Down, "etcd has the alarm NOSPACE", "kthwd etcd space --fix --data-dir=/srv/k"},
		"a program that cannot begin": {change(func(r *Report) {
			r.Components[4].State, r.Components[4].LastError = supervise.Starting, "unheard of"
		}), Degraded, "kube-scheduler is starting; last error: unheard of", "journalctl --unit=kthwd-controller --lines=100"},
		"a program of a balancer that cannot begin": {change(func(r *Report) {
			r.Components[4].State, r.Components[4].LastError, r.Names.Unit = supervise.Starting, "unheard of", "kthwd-lb"
		}), Degraded, "kube-scheduler is starting; last error: unheard of", "journalctl --unit=kthwd-lb --lines=100"},
		"a few fsyncs": {change(func(r *Report) { r.Member.Fsync = Latency{P99: time.Second, Count: 3} }), Healthy, "", ""},
		"nearly full":  {change(func(r *Report) { r.Member.Size = 7 << 30 }), Degraded, "etcd's database is at 7.0 GiB of 8.0 GiB", "kthwd etcd space --fix"},
		"full":         {change(func(r *Report) { r.Member.Size, r.Member.Alarms = 8<<30, []string{"NOSPACE"} }), Down, "etcd has the alarm NOSPACE", "kthwd etcd space --fix"},
		"29 days":      {change(func(r *Report) { r.Certificates[0].NotAfter = noon.Add(29 * 24 * time.Hour) }), Healthy, "ca.pem (CN=ca) expires in 29 days", ""},
		"6 days":       {change(func(r *Report) { r.Certificates[0].NotAfter = noon.Add(6 * 24 * time.Hour) }), Degraded, "ca.pem (CN=ca) expires in 6d0h", ""},
		"expired":      {change(func(r *Report) { r.Certificates[0].NotAfter = noon }), Down, "ca.pem (CN=ca) expired on 2026-01-02", ""},
		"expired, and only people use it": {change(func(r *Report) {
			r.Certificates[0].NotAfter, r.Certificates[0].File, r.Certificates[0].Use = noon, "/var/lib/kubernetes/admin.kubeconfig", "client"
		}), Degraded, "admin.kubeconfig (CN=ca) expired on 2026-01-02", "kthwd pki renew"},
		"expired, and only its key is used": {change(func(r *Report) { r.Certificates[0].NotAfter, r.Certificates[0].Use = noon, "signing" }), Healthy, "", ""},
		"no certificate":                    {change(func(r *Report) { r.Certificates[0].Problem = "permission\ndenied" }), Degraded, "/d/ca.pem: permission denied", ""},
		"stopping":                          {change(func(r *Report) { r.Ready, r.Reason = false, "stopping" }), Down, "not ready: stopping", ""},

		"all backends ready": {balancing("ready", "slow_start"), Healthy, "", ""},
		"a backend dead":     {balancing("ready", "dead"), Degraded, "1 of 2 backends are not ready: b:6443 is dead (x)", ""},
		"all backends dead":  {balancing("dead", "not_ready"), Down, "no backend is ready: a:6443 is dead (x), b:6443 is not_ready (x)", ""},
		"not checked yet":    {balancing("unknown", "dead"), Degraded, "1 of 2", ""},
		"the only one held":  {balancing("held"), Degraded, "no backend is ready; those that are held down pass their checks and are used: a:6443 is held (x)", "why they have fallen"},
		"both held":          {balancing("held", "held"), Degraded, "no backend is ready; those that are held down", ""},
		"held and dead":      {balancing("held", "dead"), Degraded, "no backend is ready; those that are held down pass their checks and are used: a:6443 is held (x), b:6443 is dead (x)", ""},
		"held and ready":     {balancing("held", "ready"), Degraded, "1 of 2 backends are not ready: a:6443 is held (x)", "kthwd status there"},
		"a limit reached": {func() Report {
			r := balancing("ready")
			r.LB.Limits = []lb.LimitStatus{{Name: "max_held", Value: "1", Hits: 3, Since: noon, Text: "clients are\nclosed", Do: "raise it"}}
			return r
		}(), Degraded, "the limit max_held (1) is reached: clients are closed", "raise it"},
		"a limit without a number": {func() Report {
			r := balancing("ready")
			r.LB.Limits = []lb.LimitStatus{{Name: "ports", Text: "no port is free"}}
			return r
		}(), Degraded, "the limit ports is reached: no port is free", ""},
		"a name with a problem": {func() Report {
			r := balancing("ready")
			r.LB.Names = []lb.NameStatus{{Name: "api.test:6443", Addresses: 1, Problem: "server\nmisbehaving", Since: noon}}
			return r
		}(), Healthy, "the name api.test:6443: server misbehaving", "correct the records"},
		"a name without an address": {func() Report { // which is a backend that is not ready
			r := balancing("ready", "unresolved")
			r.LB.Names = []lb.NameStatus{{Name: "b:6443", Problem: "no such host"}}
			return r
		}(), Degraded, "1 of 2 backends are not ready: b:6443 is unresolved (x)", ""},
		"what has handed over": {func() Report { r := balancing("dead"); r.HandedOver = true; return r }(), Healthy, "", ""},
	} {
		got, findings := Assess(tt.r, noon)
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
		switch {
		case tt.text == "" && len(findings) > 0:
			t.Errorf("%s: got %+v, want nothing", name, findings)
		case tt.text == "":
		case len(findings) == 0 || !strings.HasPrefix(findings[0].Text, tt.text) || !strings.Contains(findings[0].Do, tt.do):
			t.Errorf("%s: got %+v, want %q, %q", name, findings, tt.text, tt.do)
		}
	}
}

func TestWatcher(t *testing.T) {
	var w watcher
	first := healthyReport()
	w.see(first, noon)
	second := healthyReport()
	second.Components = append([]supervise.Status{}, first.Components...)
	second.Components[4].State, second.Components[4].Since = supervise.Standby, noon
	second.Quorum = &Quorum{Members: 3, Needed: 2, Active: 1, Note: "waiting"}
	second.Member.Members[2].Active = false
	var got []string
	for _, e := range w.see(second, noon) {
		got = append(got, e.Object+": "+e.From+" > "+e.To)
	}
	want := "kube-scheduler: ready > standby; etcd quorum:  > lost; etcd member three: connected > not connected"
	if strings.Join(got, "; ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "; "), want)
	}
	if again := w.see(second, noon); len(again) > 0 {
		t.Errorf("the same again: got %+v", again)
	}
	for range 3 * maxEvents {
		w.see(first, noon)
		w.see(second, noon)
	}
	w.complete(&second, noon)
	if len(second.Events) != maxEvents || second.Events[0].Object != "etcd member three" {
		t.Errorf("got %d events, the newest %+v; want %d", len(second.Events), second.Events[0], maxEvents)
	}
}

func TestRates(t *testing.T) {
	var w watcher
	r := balancing("ready", "ready")
	w.see(r, noon)
	later := balancing("ready", "dead", "ready")
	later.LB.Backends[0].Total, later.LB.Backends[0].Sent = 50, 1000
	w.complete(&later, noon.Add(10*time.Second))
	if got := later.Rates["a:6443"]; got.Connections != 5 || got.Sent != 100 {
		t.Errorf("got %+v", later.Rates)
	}
	if _, known := later.Rates["c:6443"]; known {
		t.Error("a new backend has a rate")
	}
	events := w.see(later, noon.Add(10*time.Second))
	if len(events) != 2 || events[0].Object != "backend b:6443" || events[0].To != "dead" || events[1].To != "added" {
		t.Errorf("got %+v", events)
	}
}

// Text from files and other machines cannot break a scrape.
func TestHostileLabels(t *testing.T) {
	r := healthyReport()
	r.Certificates = []Certificate{
		{File: "a\xff\n\"", Subject: "CN=\\{evil=\"1\"}\x00", Use: "ca"},
		{File: "a\xff\n\"", Subject: "CN=\\{evil=\"1\"}\x00", Use: "ca"},
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(reportCollector(func() Report { return r }))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "kthwd_certificate_expiry_timestamp_seconds" && len(f.GetMetric()) != 1 {
			t.Errorf("got %v", f)
		}
	}
}

// Without a quorum the leases are lost, too: the finding appears once, about the quorum.
func TestAssessOneCause(t *testing.T) {
	r := healthyReport()
	r.Ready = false
	r.Quorum = &Quorum{Members: 3, Needed: 2, Active: 1}
	r.Leases = []Lease{{Name: "kube-scheduler"}}
	r.Components = []supervise.Status{
		{Name: "etcd", State: supervise.Waiting}, {Name: "kube-apiserver", State: supervise.Starting},
		{Name: "kube-scheduler", State: supervise.Starting, Reason: "begins again after: lease lost", LastError: "lease lost"},
	}
	if health, findings := Assess(r, noon); health != Down || len(findings) != 1 || !strings.Contains(findings[0].Text, "no quorum") {
		t.Errorf("got %s, %+v, want the quorum alone", health, findings)
	}
	r.Quorum = healthyReport().Quorum
	_, findings := Assess(r, noon)
	var said []string
	for _, f := range findings {
		said = append(said, f.Text)
	}
	if text := strings.Join(said, "\n"); strings.Count(text, "lease lost") != 1 || !strings.Contains(text, "kube-scheduler is starting: begins again after: lease lost") {
		t.Errorf("with a quorum: got %s", text)
	}
}

// kthwd status finds nothing wrong on a machine whose certificate another machine
// refuses.
func TestAssessBackendCertificate(t *testing.T) {
	r := balancing("ready", "not_ready")
	if _, findings := Assess(r, noon); strings.Contains(findings[0].Do, "bad_cert") {
		t.Errorf("got %+v", findings)
	}
	r.LB.Backends[1].LastCheck = "bad_cert"
	if _, findings := Assess(r, noon); !strings.Contains(findings[0].Do, "for bad_cert reissue that certificate") {
		t.Errorf("got %+v", findings)
	}
}

const dead = `failed calling webhook "w.example.com": failed to call webhook: Post "https://x/": refused`

// A known cause is told once for all programs that it stops, with its time and a command.
func TestAssessCause(t *testing.T) {
	r := healthyReport()
	r.Components = append([]supervise.Status{}, r.Components...)
	since := noon.Add(-time.Minute)
	for _, i := range []int{3, 4} {
		r.Components[i].State, r.Components[i].Since = supervise.Starting, noon
		r.Components[i].Reason, r.Components[i].Cause, r.Components[i].CauseSince = "begins again after: lease lost", dead, since
	}
	r.Ready = false
	_, findings := Assess(r, noon)
	if len(findings) != 1 {
		t.Fatalf("got %+v, want one finding", findings)
	}
	f := findings[0]
	if f.Kind != "webhook" || !f.Since.Equal(since) || !strings.Contains(f.Do, "kubectl get validatingwebhookconfigurations") ||
		!strings.Contains(f.Text, r.Components[3].Name+" and "+r.Components[4].Name+` are starting: the admission webhook "w.example.com" does not answer`) {
		t.Errorf("got %+v", f)
	}
	r.Components[4].Cause = "something unheard of"
	_, findings = Assess(r, noon)
	if len(findings) != 2 || findings[0].Kind != "component" || !strings.Contains(findings[0].Text+findings[1].Text, "something unheard of") {
		t.Errorf("an unknown error: got %+v", findings)
	}
	for _, f := range findings {
		if strings.Contains(f.Do, "slow disk") {
			t.Errorf("a guess: %+v", f)
		}
	}
}

// A lasting fault that a working program meets is told, unless a watcher tells it better.
func TestAssessCauseOfAWorkingProgram(t *testing.T) {
	r := healthyReport()
	r.Components = append([]supervise.Status{}, r.Components...)
	r.Components[4].Cause = dead
	if health, findings := Assess(r, noon); health != Degraded || len(findings) != 1 || !strings.HasPrefix(findings[0].Text, r.Components[4].Name+": the admission webhook") {
		t.Errorf("got %s, %+v", health, findings)
	}
	r.Observed = []Finding{{Health: Degraded, Kind: "webhook", Text: "w.example.com"}}
	if _, findings := Assess(r, noon); len(findings) != 1 || findings[0].Text != "w.example.com" {
		t.Errorf("with a watcher: got %+v", findings)
	}
}

// The reason of a member that cannot be reached completes the finding about it.
func TestAssessCauseOfAMember(t *testing.T) {
	r := healthyReport()
	r.Components = append([]supervise.Status{}, r.Components...)
	r.Quorum.Active, r.Member.Members[1].Active = 2, false
	r.Components[1].Name, r.Components[1].Cause = "etcd", "prober detected unhealthy status: x509: certificate signed by unknown authority"
	_, findings := Assess(r, noon)
	if len(findings) != 1 || findings[0].Kind != "member" || !strings.Contains(findings[0].Text, "two cannot be reached") || !strings.Contains(findings[0].Text, "the CA here") || findings[0].Do != "kthwd pki show" {
		t.Errorf("got %+v", findings)
	}
}
