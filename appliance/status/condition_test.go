package status

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kthwd/appliance/supervise"
	"kthwd/lb"
)

// working is a controller whose components are all ready.
func working() Report {
	r := Report{
		PID: 1, Kubernetes: "v1", Started: noon.Add(-time.Hour), Ready: true, Quorum: &Quorum{Members: 3, Needed: 2, Active: 3, Leader: "c0"},
		Dependencies: map[string][]string{"etcd": {"status"}, "members": {"etcd"}, "kube-apiserver": {"etcd"}, "kube-controller-manager": {"kube-apiserver"}, "kube-scheduler": {"kube-apiserver"}},
	}
	for _, name := range []string{"status", "etcd", "members", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		r.Components = append(r.Components, supervise.Status{Name: name, State: supervise.Ready, Since: r.Started})
	}
	return r
}

// A component that is ready, and whose program cannot do its work, is not green.
func TestConditions(t *testing.T) {
	all := func(tone string) map[string]string {
		m := map[string]string{}
		for _, c := range working().Components {
			m[c.Name] = tone
		}
		return m
	}
	for _, tt := range []struct {
		name   string
		change func(*Report)
		want   map[string]string // the tones that are not good
	}{
		{"works", func(*Report) {}, nil},
		{"no quorum", func(r *Report) { r.Quorum.Leader, r.Quorum.Active = "", 1 },
			map[string]string{"etcd": "bad", "kube-apiserver": "bad", "members": "warn", "kube-controller-manager": "warn", "kube-scheduler": "warn"}},
		{"a member is away", func(r *Report) { r.Quorum.Active = 2 }, nil},
		{"back-off", func(r *Report) {
			r.Components[4].State, r.Components[4].LastError = supervise.Starting, "lease lost"
		}, map[string]string{"kube-controller-manager": "warn"}},
		{"between two failures", func(r *Report) {
			r.Events = []Event{{Time: noon.Add(-time.Minute), Object: "kube-controller-manager", From: "ready", To: "starting", RestartReason: "failed"}}
		}, map[string]string{"kube-controller-manager": "warn"}},
		{"a failure long ago", func(r *Report) {
			r.Events = []Event{{Time: noon.Add(-time.Hour), Object: "kube-controller-manager", From: "ready", To: "starting", RestartReason: "failed"}}
		}, nil},
		{"the scheduler holds no lease", func(r *Report) { r.Components[5].State = supervise.Standby }, map[string]string{"kube-scheduler": "calm"}},
		{"a finding", func(r *Report) {
			r.Observed = []Finding{{Health: Degraded, Text: "kube-scheduler: a webhook refuses its pods"}}
		}, map[string]string{"kube-scheduler": "warn"}},
		{"a note", func(r *Report) { r.Observed = []Finding{{Health: Healthy, Text: "kube-scheduler is slow"}} }, nil},
		{"an alarm", func(r *Report) { r.Member = &Member{Alarms: []string{"NOSPACE"}} },
			map[string]string{"etcd": "bad", "members": "warn", "kube-apiserver": "warn", "kube-controller-manager": "warn", "kube-scheduler": "warn"}},
		{"the API server waits", func(r *Report) { r.Components[3].State = supervise.Waiting },
			map[string]string{"kube-apiserver": "bad", "kube-controller-manager": "warn", "kube-scheduler": "warn"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := working()
			tt.change(&r)
			r.Health, r.Findings = Assess(r, noon)
			got, want := map[string]string{}, all("good")
			for name, c := range r.conditions(noon) {
				got[name] = c.Tone
			}
			for name, tone := range tt.want {
				want[name] = tone
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// A load balancer is as green as its backends.
func TestConditionOfBalancer(t *testing.T) {
	for _, tt := range []struct {
		want   string
		states []string
	}{
		{"good", []string{"ready", "slow_start"}},
		{"warn", []string{"ready", "dead"}},
		{"bad", []string{"dead", "unknown"}},
		{"warn", []string{"held"}},
		{"warn", []string{"held", "dead"}},
		{"warn", []string{"held", "ready"}},
	} {
		r := Report{Components: []supervise.Status{{Name: "lb", State: supervise.Ready}}, LB: &lb.Status{}}
		for _, s := range tt.states {
			r.LB.Backends = append(r.LB.Backends, lb.BackendStatus{Address: s, State: s})
		}
		if got := r.conditions(noon)["lb"].Tone; got != tt.want {
			t.Errorf("%v: got %s, want %s", tt.states, got, tt.want)
		}
	}
}

// A finding keeps its beginning while only its numbers change.
func TestBeginnings(t *testing.T) {
	var b beginnings
	slow := func(ms string) *Report {
		return &Report{Started: noon, Health: Degraded, Findings: []Finding{{Health: Degraded, Text: "etcd fsync p99 is " + ms + " ms"}}}
	}
	first := slow("512")
	b.complete(first, noon.Add(time.Minute))
	second := slow("623")
	b.complete(second, noon.Add(2*time.Minute))
	if want := noon.Add(time.Minute); !second.Findings[0].Since.Equal(want) || !second.HealthSince.Equal(noon) {
		t.Errorf("got %v and %v, want %v and %v", second.Findings[0].Since, second.HealthSince, want, noon)
	}
	b.complete(&Report{Health: Healthy}, noon.Add(3*time.Minute))
	again := slow("512")
	b.complete(again, noon.Add(4*time.Minute))
	if want := noon.Add(4 * time.Minute); !again.Findings[0].Since.Equal(want) || !again.HealthSince.Equal(want) {
		t.Errorf("after an end: got %v and %v, want %v", again.Findings[0].Since, again.HealthSince, want)
	}
	known := slow("1")
	known.Findings[0].Since = noon.Add(-time.Hour)
	b.complete(known, noon.Add(5*time.Minute))
	if got := known.Findings[0].Since; !got.Equal(noon.Add(-time.Hour)) {
		t.Errorf("a watcher's own beginning was replaced by %v", got)
	}
}
