package incident

import (
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// A webhook that nobody answers for refuses every request, the renewals of the leases too
// (C1). Its configuration is no object of a webhook, so that it can still be deleted.
func TestWebhookForEverything(t *testing.T) {
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{})
	makeWebhook(t, c)
	found := look(t, c, incident{
		name: "C1 webhook refuses everything", kind: "webhook",
		cause:  `the admission webhook "all.incident.test" does not answer`,
		do:     "kubectl --kubeconfig=" + c.Kubeconfig("admin") + " delete validatingwebhookconfiguration/incident",
		bridge: `the admission webhook "all.incident.test" does not answer`,
		log:    `failed calling webhook "all.incident.test"`,
	})
	shell(t, c, found.Do)
	healthy(t, c, "webhook")
}

func makeWebhook(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	nowhere := "https://127.0.0.1:9/" // nothing listens at the port discard
	fail, none, one := admissionv1.Fail, admissionv1.SideEffectClassNone, int32(1)
	_, err := c.Client(t).AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "incident"},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "all.incident.test", ClientConfig: admissionv1.WebhookClientConfig{URL: &nowhere},
			FailurePolicy: &fail, SideEffects: &none, TimeoutSeconds: &one, AdmissionReviewVersions: []string{"v1"},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.OperationAll},
				Rule:       admissionv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"}},
			}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}
