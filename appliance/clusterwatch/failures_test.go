package clusterwatch

import (
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	whose := subject{kind: kindRefuses, name: "policy.example.com", admission: typeValidating}
	f.hooks = map[hookName][]hook{{typeValidating, whose.name}: {{"validatingwebhookconfiguration", "policy", "127.0.0.1:1"}}}
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
		f.note(whose, step.total, now)
		all := f.findings(now)
		switch {
		case step.want == "" && len(all) == 0:
		case step.want == "" || len(all) != 1 || all[0].Text != step.want || !all[0].Since.Equal(begin.Add(step.since)):
			t.Errorf("after %v: %+v; want %q", step.after, all, step.want)
		}
	}
	f.hooks = map[hookName][]hook{}
	if all := f.findings(begin.Add(30 * time.Minute)); len(all) > 0 {
		t.Errorf("the webhook was deleted: %+v", all)
	}
}

// A name belongs to several webhooks at once: the metric says whether a validating or a mutating one fails.
func TestWebhooksOfOneName(t *testing.T) {
	f := newFailures(New(Config{Kubeconfig: "/d/admin.kubeconfig"}).cfg)
	const name = "policy.example.com"
	server := func(url string) admissionv1.WebhookClientConfig { return admissionv1.WebhookClientConfig{URL: &url} }
	validating := func(configuration, url string) admissionv1.ValidatingWebhookConfiguration {
		return admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: configuration},
			Webhooks: []admissionv1.ValidatingWebhook{{Name: name, ClientConfig: server(url)}}}
	}
	mutating := admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "defaults"},
		Webhooks: []admissionv1.MutatingWebhook{{Name: name, ClientConfig: server("https://b/")}}}
	one := []admissionv1.ValidatingWebhookConfiguration{validating("policy", "https://a/")}
	const kubectl = "kubectl --kubeconfig /d/admin.kubeconfig "
	for _, tt := range []struct {
		labels map[string]string
		all    []admissionv1.ValidatingWebhookConfiguration
		counts bool
		text   string
		do     string
	}{
		{map[string]string{"type": typeValidating, "error_type": "calling_webhook_error"}, one, true,
			"the webhook policy.example.com of validatingwebhookconfiguration policy cannot be called at a: requests refused because of it: 1",
			kubectl + "delete validatingwebhookconfiguration policy"},
		{map[string]string{"type": typeMutating, "error_type": "calling_webhook_error"}, one, true,
			"the webhook policy.example.com of mutatingwebhookconfiguration defaults cannot be called at b: requests refused because of it: 1",
			kubectl + "delete mutatingwebhookconfiguration defaults"},
		{map[string]string{"type": typeMutating, "error_type": "apiserver_internal_error"}, one, true,
			"the webhook policy.example.com of mutatingwebhookconfiguration defaults gives answers that cannot be used at b: requests refused because of it: 1",
			kubectl + "delete mutatingwebhookconfiguration defaults"},
		{map[string]string{"type": typeValidating, "error_type": "no_error"}, one, false, "", ""},
		{map[string]string{"type": typeValidating, "error_type": "calling_webhook_error"}, append(one, validating("second", "https://c/")), true,
			"the webhook policy.example.com of one validatingwebhookconfiguration cannot be called: policy at a, or second at c; requests refused because of it: 1",
			kubectl + "get validatingwebhookconfiguration policy second -o yaml; delete the one at fault"},
	} {
		f.all, f.hooks = map[subject]*failure{}, hooksOf(tt.all, []admissionv1.MutatingWebhookConfiguration{mutating})
		m := &dto.Metric{Label: []*dto.LabelPair{{Name: new("name"), Value: new(name)}}}
		for label, value := range tt.labels {
			m.Label = append(m.Label, &dto.LabelPair{Name: &label, Value: &value})
		}
		whose, ok := counters[0].counts(m)
		if ok != tt.counts {
			t.Errorf("%v: counts as a failure: %v", tt.labels, ok)
		}
		if !ok {
			continue
		}
		whose.kind = counters[0].kind
		now := time.Now()
		f.note(whose, 1, now)
		if all := f.findings(now); len(all) != 1 || all[0].Text != tt.text || all[0].Do != tt.do {
			t.Errorf("%v: got %+v, want %q, %q", tt.labels, all, tt.text, tt.do)
		}
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
