package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"kthwd/test/kthwtest"
)

// switchable is something outside of kthwd that breaks its programs while it is there.
type switchable struct {
	name string
	on   func(context.Context, kubernetes.Interface) error
	off  func(context.Context, kubernetes.Interface) error
	says string // part of the last error
	do   string // part of the command that removes it
}

// deadWebhook refuses what rule describes, because nothing answers at its address.
func deadWebhook(name string, rule admissionv1.Rule, operations ...admissionv1.OperationType) switchable {
	return switchable{
		name: "webhook " + name,
		on: func(ctx context.Context, client kubernetes.Interface) error {
			_, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(ctx, &admissionv1.ValidatingWebhookConfiguration{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Webhooks: []admissionv1.ValidatingWebhook{{
					Name: name + ".example.com", FailurePolicy: ptr.To(admissionv1.Fail), SideEffects: ptr.To(admissionv1.SideEffectClassNone),
					AdmissionReviewVersions: []string{"v1"}, TimeoutSeconds: ptr.To(int32(1)),
					ClientConfig: admissionv1.WebhookClientConfig{URL: ptr.To("https://127.0.0.1:1/")},
					Rules:        []admissionv1.RuleWithOperations{{Rule: rule, Operations: operations}},
				}},
			}, metav1.CreateOptions{})
			return err
		},
		off: func(ctx context.Context, client kubernetes.Interface) error {
			return client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(ctx, name, metav1.DeleteOptions{})
		},
		says: name + ".example.com",
		do:   "delete validatingwebhookconfiguration/" + name,
	}
}

var tokens = admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"serviceaccounts/token"}}

// refusingPolicy refuses tokens of service accounts without any webhook.
func refusingPolicy(name string) switchable {
	return switchable{
		name: "policy " + name,
		on: func(ctx context.Context, client kubernetes.Interface) error {
			_, err := client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Create(ctx, &admissionv1.ValidatingAdmissionPolicy{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec: admissionv1.ValidatingAdmissionPolicySpec{
					FailurePolicy: ptr.To(admissionv1.Fail),
					MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{
						RuleWithOperations: admissionv1.RuleWithOperations{Rule: tokens, Operations: []admissionv1.OperationType{admissionv1.Create}},
					}}},
					Validations: []admissionv1.Validation{{Expression: "false", Message: "no more tokens"}},
				},
			}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			_, err = client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(ctx, &admissionv1.ValidatingAdmissionPolicyBinding{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec:       admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}},
			}, metav1.CreateOptions{})
			return err
		},
		off: func(ctx context.Context, client kubernetes.Interface) error {
			err := client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Delete(ctx, name, metav1.DeleteOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return err
			}
			return client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Delete(ctx, name, metav1.DeleteOptions{})
		},
		says: "no more tokens",
		do:   "delete validatingadmissionpolicybinding " + name,
	}
}

// Whoever keeps kube-controller-manager from getting its tokens makes it exit at each start
// (namespaced_resources_deleter.go). Only its terms end: etcd and the API server go on, so
// that the cause can be removed through them.
func TestExitEndsOneTerm(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		switchable
		exits int // terms that end by an exit, between others that fail
	}{
		{deadWebhook("refuses-tokens", tokens, admissionv1.Create), 2},
		{refusingPolicy("refuses-tokens"), 1},
	} {
		cause := tt.switchable
		t.Run(cause.name, func(t *testing.T) {
			kthwtest.Turn(t, 1)
			c := kthwtest.Start(t, kthwtest.Options{})
			if err := cause.on(t.Context(), c.Client(t)); err != nil {
				t.Fatal(err)
			}
			stop(t, c, syscall.SIGTERM, 0)
			c = again(t, c, kthwtest.Options{})
			client, pid := c.Client(t), c.Cmd.Process.Pid
			kthwtest.WaitFor(t, "terms that ended by exits", 2*soon, func() error { return exits(c, kcm, tt.exits) })
			saysWhy(t, c, kcm, cause.says)
			saysWhatToDo(t, c, cause.do)
			for _, name := range []string{"etcd", "kube-apiserver", sched} {
				lasts(t, c, name)
			}
			if err := write(t, client, "meanwhile"); err != nil {
				t.Errorf("the API server: %v", err)
			}
			if err := cause.off(t.Context(), client); err != nil {
				t.Fatal(err)
			}
			kthwtest.WaitFor(t, kcm+" ready again", 2*soon, func() error { return isLeading(c, kcm) })
			kthwtest.WaitFor(t, kcm+" works again", soon, func() error { return works(t.Context(), client, "shop") })
			if r, err := c.Status(); err != nil || r.PID != pid || c.Exited() {
				t.Errorf("got process %d (%v), want %d as before", r.PID, err, pid)
			}
			stop(t, c, syscall.SIGTERM, 0)
		})
	}
}

// lasts wants a component that works, and none of whose terms has ended.
func lasts(t *testing.T, c *kthwtest.Controller, name string) {
	t.Helper()
	kthwtest.WaitFor(t, name+" ready", soon, func() error {
		s, err := component(c, name)
		if err == nil && !s.Healthy() {
			err = fmt.Errorf("got %+v", s)
		}
		return err
	})
	if ended := c.EndedTerms(name); len(ended) > 0 {
		t.Errorf("%s: terms have ended: %q", name, ended)
	}
	if s, err := component(c, name); name != kcm && name != sched && (err != nil || s.Restarts > 0) {
		t.Errorf("%s has begun again: %+v, %v", name, s, err)
	}
}

// exits is nil when at least n terms of a component have ended by exits.
func exits(c *kthwtest.Controller, name string, n int) error {
	r, err := c.Status()
	if got := r.Restarts[name]["exit"]; err == nil && got < n {
		err = fmt.Errorf("got %d: %v", got, r.Restarts)
	}
	return err
}

// saysWhy checks that kthwd status, the metrics and the log tell the cause.
func saysWhy(t *testing.T, c *kthwtest.Controller, name, cause string) {
	t.Helper()
	s, err := component(c, name)
	if err != nil || !strings.Contains(s.LastError, cause) || !strings.Contains(s.LastError, ".go:") {
		t.Errorf("got last error %q, %v; want the cause %q and the place", s.LastError, err, cause)
	}
	_, output := verb(t, c, "status")
	if !strings.Contains(output, name) || !strings.Contains(output, cause) {
		t.Errorf("kthwd status says\n%s\nwant %q", output, cause)
	}
	if !strings.Contains(c.Log.String(), cause) {
		t.Errorf("the log does not say %q", cause)
	}
	_, metrics, err := ask(insecure(), fmt.Sprintf("http://%s:%d/metrics", c.Address, c.Ports.Metrics))
	if want := `kthwd_component_restarts_total{component="` + name + `",reason="exit"}`; err != nil || !strings.Contains(metrics, want) || strings.Contains(metrics, want+" 0") {
		t.Errorf("metrics: %v; want %s above 0", err, want)
	}
	if want := `kthwd_component_leaked_terms_total{component="` + name + `"} 0`; !strings.Contains(metrics, want) {
		t.Errorf("metrics: want %s", want)
	}
}

// saysWhatToDo waits until kthwd status has the command: between two terms that fail, one works for a moment.
func saysWhatToDo(t *testing.T, c *kthwtest.Controller, do string) {
	t.Helper()
	kthwtest.WaitFor(t, "kthwd status to say "+do, soon, func() error {
		if _, output := verb(t, c, "status"); !strings.Contains(output, do) {
			return errors.New(output)
		}
		return nil
	})
}

// works is nil when kube-controller-manager has made the service account of a new namespace.
func works(ctx context.Context, client kubernetes.Interface, name string) error {
	if _, err := client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{}); err != nil {
		if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	_, err := client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
	return err
}

// leakLimit is the number of terms within an hour that may be left behind, and one.
const leakLimit = 5

// A term whose controllers do not stop in time is left behind. The next one works, through a
// URL of its own, and too many end the process in order.
func TestLeakedTerms(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: append(quickLeases(), "--"+kcm+"-arg=controller-shutdown-timeout=1ns")})
	client := c.Client(t)
	// On a busy machine a term may lose its lease by itself, too.
	for was := 0; was < leakLimit-1; {
		kthwtest.WaitFor(t, kcm+" leading", soon, func() error { return isLeading(c, kcm) })
		kthwtest.WaitFor(t, kcm+" working", soon, func() error { return works(t.Context(), client, fmt.Sprintf("shop-%d", was)) })
		thief := steal(t, client, kcm, 0)
		kthwtest.WaitFor(t, "a term that is left behind", soon, func() error {
			now, err := leaked(c)
			if err == nil && now <= was {
				err = fmt.Errorf("got %d, had %d before", now, was)
			}
			was = max(was, now)
			return err
		})
		thief.giveBack(t)
	}
	kthwtest.WaitFor(t, kcm+" working", soon, func() error { return works(t.Context(), client, "shop") })
	steal(t, client, kcm, 0)
	if got := c.Wait(t, soon); got != 1 {
		t.Errorf("got exit code %d, want 1", got)
	}
	o := outcome{c.Cmd.ProcessState.ExitCode(), c.Log.String()}
	if problems, _ := o.errorLines(); len(problems) != 1 || !strings.Contains(problems[0], "5 terms within 1h0m0s have left running code behind") {
		t.Errorf("got errors %q, want one that says why", problems)
	}
	for _, name := range []string{"kube-apiserver", "etcd"} {
		if !strings.Contains(o.stderr, "component="+name+" msg=stopped ") {
			t.Errorf("%s was not stopped in order", name)
		}
	}
}

// leaked is how many terms of kube-controller-manager were left behind.
func leaked(c *kthwtest.Controller) (int, error) {
	r, err := c.Status()
	for _, l := range r.Leases {
		if l.Name == kcm {
			return l.Leaked, err
		}
	}
	return 0, errors.Join(err, errors.New("no lease of "+kcm+" in the status"))
}
