package clusterwatch

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	_ "k8s.io/apiextensions-apiserver/pkg/apiserver/conversion" // registers its collector, as the two below do
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	_ "k8s.io/apiserver/pkg/admission/metrics"
	_ "k8s.io/apiserver/pkg/audit"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/metrics/legacyregistry"

	"kthwd/appliance/cause"
	"kthwd/appliance/series"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

// failureQuiet is the time after the last failure at which a finding ends.
const failureQuiet = 5 * time.Minute

// counter is one of upstream's families of counters that count failures, with the labels
// that tell a failure. Its help text is part of what identifies it.
type counter struct {
	kind   string // of the finding
	opts   prometheus.CounterOpts
	labels []string
	counts func(*dto.Metric) (whose subject, ok bool) // ok is false for what is no failure
}

// subject is whose failures are counted together.
type subject struct {
	kind string // of the finding
	name string // of a webhook, CRD or plugin

	// Of a webhook.
	admission string // the label type, typeValidating or typeMutating: both may have the name
	unusable  bool   // it can be called, and its answers cannot be used
}

// Values of labels of upstream's metrics about webhooks (apiserver/pkg/admission/metrics/metrics.go).
const (
	typeValidating = "validating"
	typeMutating   = "admit"

	errorNone   = "no_error"                 // the webhook has refused the request, as it may
	errorAnswer = "apiserver_internal_error" // such as a patch that does not fit the object
)

func webhookOf(m *dto.Metric) subject {
	return subject{name: series.Label(m, "name"), admission: series.Label(m, "type"), unusable: series.Label(m, "error_type") == errorAnswer}
}

// The kinds of findings about failures.
const (
	kindRefuses   = cause.Webhook        // a webhook cannot be called, and requests fail because of it
	kindFailsOpen = "webhook_skipped"    // a webhook cannot be called, and requests go on without it
	kindConverts  = cause.Conversion     // of a CRD
	kindAuditLost = "audit_records_lost" // whatever the reason
)

var counters = []counter{
	{kindRefuses, prometheus.CounterOpts{
		Name: "apiserver_admission_webhook_rejection_count",
		Help: "[ALPHA] Admission webhook rejection count, identified by name and broken out for each admission type (validating or admit) and operation. Additional labels specify an error type (calling_webhook_error or apiserver_internal_error if an error occurred; no_error otherwise) and optionally a non-zero rejection code if the webhook rejects the request with an HTTP status code (honored by the apiserver when the code is greater or equal to 400). Codes greater than 600 are truncated to 600, to keep the metrics cardinality bounded.",
	}, []string{"name", "type", "operation", "error_type", "rejection_code"}, func(m *dto.Metric) (subject, bool) {
		return webhookOf(m), series.Label(m, "error_type") != errorNone
	}},
	{kindFailsOpen, prometheus.CounterOpts{
		Name: "apiserver_admission_webhook_fail_open_count",
		Help: "[ALPHA] Admission webhook fail open count, identified by name and broken out for each admission type (validating or admit).",
	}, []string{"name", "type"}, func(m *dto.Metric) (subject, bool) { return webhookOf(m), true }},
	{kindConverts, prometheus.CounterOpts{
		Name: "apiserver_conversion_webhook_request_total",
		Help: "[ALPHA] Counter for conversion webhook requests with success/failure and failure error type",
	}, []string{"result", "failure_type"}, func(m *dto.Metric) (subject, bool) { return subject{}, series.Label(m, "result") == "failure" }},
	{kindAuditLost, prometheus.CounterOpts{
		Name: "apiserver_audit_error_total",
		Help: "[ALPHA] Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error.",
	}, []string{"plugin"}, func(m *dto.Metric) (subject, bool) { return subject{name: series.Label(m, "plugin")}, true }},
}

// registered returns upstream's collector of a family, or nil.
func (c counter) registered() prometheus.Collector {
	return series.Registered(legacyregistry.Registerer(), prometheus.NewCounterVec(c.opts, c.labels))
}

// conversionFamily has the names of the CRDs. It is registered only with the first
// webhook, so it is gathered, which takes long, and only after a failure.
const conversionFamily = "apiserver_crd_conversion_webhook_duration_seconds"

func failedConversions() map[subject]float64 {
	all := map[subject]float64{}
	families, _ := legacyregistry.DefaultGatherer.Gather() // the other families do not matter
	for _, f := range families {
		if f.GetName() != conversionFamily {
			continue
		}
		for _, m := range f.GetMetric() {
			if series.Label(m, "succeeded") == "false" {
				all[subject{name: series.Label(m, "crd_name")}] += float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return all
}

// failure is what one webhook, CRD or plugin has failed.
type failure struct {
	subject
	seen        float64 // total of the last look
	before      float64 // total when this row of failures began
	since, last time.Time
}

// failures follows upstream's counters of failures.
type failures struct {
	cfg        Config
	collectors map[string]prometheus.Collector // by kind
	converted  float64                         // failed requests to conversion webhooks at the last look; used by look

	mu    sync.Mutex
	all   map[subject]*failure
	hooks map[hookName][]hook // nil until a list has succeeded
}

// hookName is what several webhooks can share: it is unique within one configuration only.
type hookName struct{ admission, name string }

// hook is an admission webhook's place.
type hook struct{ kind, configuration, server string }

func newFailures(cfg Config) *failures {
	f := &failures{cfg: cfg, collectors: map[string]prometheus.Collector{}, all: map[subject]*failure{}}
	for _, c := range counters {
		if f.collectors[c.kind] = c.registered(); f.collectors[c.kind] == nil {
			cfg.Log.Error("a metric of Kubernetes is not as expected, so failures are not seen", "family", c.opts.Name)
		}
	}
	return f
}

// look reads the counters. It asks the API server only while a webhook fails.
func (f *failures) look(ctx context.Context, client kubernetes.Interface, now time.Time) {
	for _, c := range counters {
		totals := map[subject]float64{}
		for _, m := range series.Read(f.collectors[c.kind]) {
			if whose, ok := c.counts(m); ok {
				totals[whose] += m.GetCounter().GetValue()
			}
		}
		if c.kind == kindConverts {
			totals = f.conversions(totals[subject{}])
		}
		for whose, total := range totals {
			whose.kind = c.kind
			f.note(whose, total, now)
		}
	}
	if f.webhookFails(now) {
		f.findHooks(ctx, client)
	}
}

// conversions names the CRDs when the total of failed requests has grown.
func (f *failures) conversions(total float64) map[subject]float64 {
	if total == f.converted {
		return nil
	}
	f.converted = total
	return failedConversions()
}

func (f *failures) note(whose subject, total float64, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	one := f.all[whose]
	if one == nil {
		if total == 0 {
			return
		}
		one = &failure{subject: whose}
		f.all[whose] = one
	}
	if total <= one.seen {
		return
	}
	if now.Sub(one.last) > failureQuiet {
		one.since, one.before = now, one.seen
		f.cfg.Log.Warn("failures begin", "kind", whose.kind, "name", whose.name)
	}
	one.seen, one.last = total, now
}

func (f *failures) webhookFails(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, one := range f.all {
		if (one.kind == kindRefuses || one.kind == kindFailsOpen) && now.Sub(one.last) <= failureQuiet {
			return true
		}
	}
	return false
}

// findHooks lists the admission webhooks, from the server's cache.
func (f *failures) findHooks(ctx context.Context, client kubernetes.Interface) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	cached, api := metav1.ListOptions{ResourceVersion: "0"}, client.AdmissionregistrationV1()
	validating, err := api.ValidatingWebhookConfigurations().List(ctx, cached)
	if err != nil {
		return
	}
	mutating, err := api.MutatingWebhookConfigurations().List(ctx, cached)
	if err != nil {
		return
	}
	hooks := hooksOf(validating.Items, mutating.Items)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hooks = hooks
}

func hooksOf(validating []admissionv1.ValidatingWebhookConfiguration, mutating []admissionv1.MutatingWebhookConfiguration) map[hookName][]hook {
	all := map[hookName][]hook{}
	add := func(admission, name string, h hook) {
		key := hookName{admission, name}
		all[key] = append(all[key], h)
	}
	for _, c := range validating {
		for _, w := range c.Webhooks {
			add(typeValidating, w.Name, hook{"validatingwebhookconfiguration", c.Name, serverOf(w.ClientConfig)})
		}
	}
	for _, c := range mutating {
		for _, w := range c.Webhooks {
			add(typeMutating, w.Name, hook{"mutatingwebhookconfiguration", c.Name, serverOf(w.ClientConfig)})
		}
	}
	return all
}

// serverOf names a webhook's server without the query of its URL, which may be a secret.
func serverOf(c admissionv1.WebhookClientConfig) string {
	if s := c.Service; s != nil {
		return "service " + s.Namespace + "/" + s.Name
	}
	if c.URL == nil {
		return "no server"
	}
	_, rest, _ := strings.Cut(*c.URL, "://")
	host, _, _ := strings.Cut(rest, "/")
	return host[strings.LastIndex(host, "@")+1:]
}

func (f *failures) findings(now time.Time) (all []status.Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, one := range f.all {
		if now.Sub(one.last) > failureQuiet {
			continue
		}
		if finding, ok := f.finding(one); ok {
			finding.Health, finding.Kind, finding.Since = status.Degraded, one.kind, one.since
			all = append(all, finding)
		}
	}
	slices.SortFunc(all, func(a, b status.Finding) int { return strings.Compare(a.Text, b.Text) })
	return all
}

// finding words a row of failures. It is false for a webhook that has been deleted.
func (f *failures) finding(one *failure) (status.Finding, bool) {
	n := int64(one.seen - one.before)
	switch one.kind {
	case kindConverts:
		return status.Finding{
			Text: fmt.Sprintf("the conversion webhook of the CRD %s fails: its objects cannot be read, and no namespace can be deleted; failures so far: %d", one.name, n),
			Do:   f.cfg.kubectl("get crd", one.name, "-o jsonpath={.spec.conversion.webhook.clientConfig}"),
		}, true
	case kindAuditLost:
		finding := status.Finding{Text: fmt.Sprintf("audit records are being lost, for the audit plugin %s fails: %d so far", one.name, n)}
		if f.cfg.AuditLog != "" {
			finding.Do = "ls -l " + text.ShellWord(f.cfg.AuditLog) + "; df -h " + text.ShellWord(f.cfg.AuditLog)
		}
		return finding, true
	}
	return f.ofWebhook(one, n)
}

func (f *failures) ofWebhook(one *failure, n int64) (status.Finding, bool) {
	hooks := f.hooks[hookName{one.admission, one.name}]
	if len(hooks) == 0 {
		return status.Finding{Text: fmt.Sprintf("the webhook %s fails", one.name)}, f.hooks == nil
	}
	does := "cannot be called"
	if one.unusable {
		does = "gives answers that cannot be used"
	}
	effect := fmt.Sprintf("requests refused because of it: %d", n)
	if one.kind == kindFailsOpen {
		effect = fmt.Sprintf("requests that went on without it: %d", n)
	}
	kind := hooks[0].kind
	var names, places []string
	for _, h := range hooks {
		names, places = append(names, h.configuration), append(places, h.configuration+" at "+h.server)
	}
	if len(hooks) > 1 {
		return status.Finding{
			Text: fmt.Sprintf("the webhook %s of one %s %s: %s; %s", one.name, kind, does, strings.Join(places, ", or "), effect),
			Do:   f.cfg.kubectl("get", kind, strings.Join(names, " "), "-o yaml") + "; delete the one at fault",
		}, true
	}
	return status.Finding{
		Text: fmt.Sprintf("the webhook %s of %s %s %s at %s: %s", one.name, kind, names[0], does, hooks[0].server, effect),
		Do:   f.cfg.kubectl("delete", kind, names[0]),
	}, true
}
