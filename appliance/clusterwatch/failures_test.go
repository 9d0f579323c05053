package clusterwatch

import (
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
)

// Upstream's families are those that are read: a renamed one would be a silent failure.
func TestCounters(t *testing.T) {
	for _, c := range counters {
		if c.registered() == nil {
			t.Errorf("%s is not registered with these labels and this help", c.opts.Name)
		}
	}
}

func TestFailureRows(t *testing.T) {
	f := newFailures(New(Config{}).cfg)
	begin := time.Date(2026, 1, 2, 2, 4, 0, 0, time.UTC)
	const name = "policy.example.com"
	f.hooks = map[string]hook{name: {"validatingwebhookconfiguration", "policy", "127.0.0.1:1"}}
	for _, step := range []struct {
		after time.Duration
		total float64
		want  string // text; "" for none
		since time.Duration
	}{
		{0, 0, "", 0},
		{time.Minute, 3, "the webhook policy.example.com of validatingwebhookconfiguration policy cannot be called at 127.0.0.1:1: requests refused because of it: 3", time.Minute},
		{4 * time.Minute, 5, "the webhook policy.example.com of validatingwebhookconfiguration policy cannot be called at 127.0.0.1:1: requests refused because of it: 5", time.Minute},
		{20 * time.Minute, 5, "", 0},
		{30 * time.Minute, 6, "the webhook policy.example.com of validatingwebhookconfiguration policy cannot be called at 127.0.0.1:1: requests refused because of it: 1", 30 * time.Minute},
	} {
		now := begin.Add(step.after)
		f.note(kindRefuses, name, step.total, now)
		all := f.findings(now)
		switch {
		case step.want == "" && len(all) == 0:
		case step.want == "" || len(all) != 1 || all[0].Text != step.want || !all[0].Since.Equal(begin.Add(step.since)):
			t.Errorf("after %v: %+v; want %q", step.after, all, step.want)
		}
	}
	f.hooks = map[string]hook{}
	if all := f.findings(begin.Add(30 * time.Minute)); len(all) > 0 {
		t.Errorf("the webhook was deleted: %+v", all)
	}
}

func TestServerOf(t *testing.T) {
	secret := "https://user:password@hooks.example.com:8443/path?token=abc"
	for want, c := range map[string]admissionv1.WebhookClientConfig{
		"service kube-system/policy": {Service: &admissionv1.ServiceReference{Namespace: "kube-system", Name: "policy"}},
		"hooks.example.com:8443":     {URL: &secret},
		"no server":                  {},
	} {
		if got := serverOf(c); got != want {
			t.Errorf("serverOf = %q; want %q", got, want)
		}
	}
}
