package incident

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// TestWebhooks has one webhook after the other on one controller, which stops beside the last.
func TestWebhooks(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	t.Run("for everything", func(t *testing.T) { webhookForEverything(t, c) })
	t.Run("that denies", func(t *testing.T) { webhookDenies(t, c) })
	makeDeadWebhook(t, c)
	finding(t, c, "webhook", "all.incident.test")
	stop(t, c)
}

// makeDeadWebhook makes a webhook that refuses everything, for nobody answers.
func makeDeadWebhook(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	makeWebhook(t, c, admissionv1.WebhookClientConfig{URL: new("https://127.0.0.1:9/")}, "*", "*/*") // nothing listens at the port discard
}

// A webhook that nobody answers for refuses every request, the renewals of the leases too
// (C1). Its configuration is no object of a webhook, so that it can still be deleted.
func webhookForEverything(t *testing.T, c *kthwtest.Controller) {
	makeDeadWebhook(t, c)
	found := look(t, c, incident{
		name: "C1 webhook refuses everything", kind: "webhook",
		cause:  `the admission webhook "all.incident.test" does not answer`,
		do:     "kubectl --kubeconfig=" + c.Kubeconfig("admin") + " delete validatingwebhookconfiguration/incident",
		bridge: `the admission webhook "all.incident.test" does not answer`,
		log:    `failed calling webhook "all.incident.test"`,
	})
	typeCommand(t, found.Do)
	healthy(t, c, "webhook")
}

// A webhook that answers, and denies what it is asked: the leases cannot be renewed (C16).
func webhookDenies(t *testing.T, c *kthwtest.Controller) {
	server := httptest.NewTLSServer(http.HandlerFunc(deny))
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	makeWebhook(t, c, admissionv1.WebhookClientConfig{URL: &server.URL, CABundle: ca}, "coordination.k8s.io", "leases")
	found := look(t, c, incident{
		name: "C16 webhook denies the leases", kind: "webhook", alert: alertNotReady, // a refusal is what a webhook is for
		cause:  `the admission webhook "all.incident.test" refuses its requests (closed for the incident)`,
		do:     "kubectl --kubeconfig=" + c.Kubeconfig("admin") + " delete validatingwebhookconfiguration/incident",
		bridge: `the admission webhook "all.incident.test" refuses its requests`,
		log:    `admission webhook "all.incident.test" denied the request: closed for the incident`,
	})
	typeCommand(t, found.Do)
	healthy(t, c, "webhook")
}

// deny answers every review with a refusal.
func deny(w http.ResponseWriter, r *http.Request) {
	var review struct {
		APIVersion string         `json:"apiVersion"`
		Kind       string         `json:"kind"`
		Request    map[string]any `json:"request,omitempty"`
		Response   map[string]any `json:"response"`
	}
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	review.Response = map[string]any{"uid": review.Request["uid"], "allowed": false, "status": map[string]any{"message": "closed for the incident"}}
	review.Request = nil
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(review)
}

// makeWebhook makes a webhook that must accept everything that is done to the resources.
func makeWebhook(t *testing.T, c *kthwtest.Controller, server admissionv1.WebhookClientConfig, group, resource string) {
	t.Helper()
	fail, none, one := admissionv1.Fail, admissionv1.SideEffectClassNone, int32(1)
	_, err := c.Client(t).AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "incident"},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "all.incident.test", ClientConfig: server,
			FailurePolicy: &fail, SideEffects: &none, TimeoutSeconds: &one, AdmissionReviewVersions: []string{"v1"},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.OperationAll},
				Rule:       admissionv1.Rule{APIGroups: []string{group}, APIVersions: []string{"*"}, Resources: []string{resource}},
			}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}
