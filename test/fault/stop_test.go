package fault

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	admission "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// inOrderAfter stops a controller in the middle of something: it must end in order, with
// exit code 0, and no component may overrun its budget.
func inOrderAfter(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	stop(t, c, syscall.SIGTERM, 0)
	if log := c.Log.String(); strings.Contains(log, "did not stop within") {
		t.Errorf("a component overran its budget:\n%s", c.Log.Tail(40))
	}
}

// refuseLeases makes the API server ask a webhook that is not there about every Lease.
func refuseLeases(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	fail, none, url := admission.Fail, admission.SideEffectClassNone, "https://127.0.0.1:9/"
	_, err := c.Client(t).AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admission.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "leases"},
		Webhooks: []admission.ValidatingWebhook{{Name: "leases.example.com", FailurePolicy: &fail, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admission.WebhookClientConfig{URL: &url},
			Rules: []admission.RuleWithOperations{{Operations: []admission.OperationType{admission.OperationAll}, Rule: admission.Rule{
				APIGroups: []string{"coordination.k8s.io"}, APIVersions: []string{"*"}, Resources: []string{"leases"}}}}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// holdWrites makes the API server ask a webhook about every write that accepts connections and
// never answers, and waits until it holds one.
func holdWrites(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	fail, none, url, longest := admission.Fail, admission.SideEffectClassNone, "https://"+silent.Addr().String()+"/", int32(30)
	_, err = c.Client(t).AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admission.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "silent"},
		Webhooks: []admission.ValidatingWebhook{{Name: "silent.example.com", FailurePolicy: &fail, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			TimeoutSeconds: &longest, ClientConfig: admission.WebhookClientConfig{URL: &url},
			Rules: []admission.RuleWithOperations{{Operations: []admission.OperationType{admission.OperationAll}, Rule: admission.Rule{
				APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"}}}}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	held, err := silent.Accept() // a renewal of a lease, at the latest
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { held.Close() })
}

// TestStopWhileLeasesAreRefused stops kthwd while no Lease can be written, not even its
// own, and while status names that.
func TestStopWhileLeasesAreRefused(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	refuseLeases(t, c)
	kthwtest.WaitFor(t, "a finding for the identity Lease", soon, func() error {
		r, err := c.Status()
		if err != nil {
			return err
		}
		for _, f := range r.Findings {
			if f.Kind == "identity_lease" && strings.Contains(f.Text, "leases.example.com") && strings.HasSuffix(f.Do, " delete validatingwebhookconfiguration/leases") && !f.Since.IsZero() {
				return nil
			}
		}
		return fmt.Errorf("got %+v", r.Findings)
	})
	// It recovers, and the next refusal is in the middle of the stop.
	webhooks := c.Client(t).AdmissionregistrationV1().ValidatingWebhookConfigurations()
	if err := webhooks.Delete(t.Context(), "leases", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, "the finding to end", soon, func() error {
		r, err := c.Status()
		if err == nil && slices.ContainsFunc(r.Findings, func(f status.Finding) bool { return f.Kind == "identity_lease" }) {
			err = fmt.Errorf("got %+v", r.Findings)
		}
		return err
	})
	refuseLeases(t, c)
	inOrderAfter(t, c)
}

// TestStopWithALongHostName: a host name of 64 characters, the most that Linux takes, is
// one too many for the label of the API server's identity Lease. The stop is one in which no
// write of anything is answered.
func TestStopWithALongHostName(t *testing.T) {
	kthwtest.Turn(t, 1)
	if os.Getuid() != 0 {
		t.Skip("needs root, for a host name of its own")
	}
	name := strings.Repeat("n", 64)
	c := kthwtest.Start(t, kthwtest.Options{Wrap: []string{"unshare", "-u", "sh", "-c", `hostname ` + name + ` && exec "$@"`, "sh"}})
	client := c.Client(t)
	kthwtest.WaitFor(t, "the identity Lease", soon, func() error {
		all, err := client.CoordinationV1().Leases("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: "apiserver.kubernetes.io/identity=kube-apiserver"})
		if err != nil {
			return err
		}
		if len(all.Items) != 1 || all.Items[0].Labels["kubernetes.io/hostname"] != name[:63] || all.Items[0].Spec.RenewTime == nil {
			return fmt.Errorf("got %+v", all.Items)
		}
		return nil
	})
	holdWrites(t, c)
	inOrderAfter(t, c)
}

// TestStopWhileStarting stops kthwd at moments of its start: when each component begins
// and when it is ready.
func TestStopWhileStarting(t *testing.T) {
	t.Parallel()
	for _, moment := range []string{
		"component=status msg=ready", "component=etcd msg=ready", "component=kube-apiserver msg=ready", "component=rbac-seed msg=ready", "component=kube-scheduler msg=",
	} {
		t.Run(strings.NewReplacer(" ", "-", "=", "-").Replace(moment), func(t *testing.T) {
			kthwtest.Turn(t, 1)
			c := kthwtest.Start(t, kthwtest.Options{NoWait: true})
			kthwtest.WaitFor(t, moment, soon, func() error {
				if !strings.Contains(c.Log.String(), moment) {
					return fmt.Errorf("not yet; exited: %v", c.Exited())
				}
				return nil
			})
			inOrderAfter(t, c)
		})
	}
	t.Run("before-the-API-server-is-built", func(t *testing.T) {
		kthwtest.Turn(t, 1)
		for range 3 { // a build may have ended before the signal arrives
			if !servesInVain(t) {
				return
			}
		}
		t.Error("the API server began to serve after kthwd had been asked to stop, three times")
	})
	for _, n := range []string{"first", "second", "third", "fourth"} { // what is under way then differs
		t.Run("first-answer-of-the-API-server/"+n, func(t *testing.T) {
			kthwtest.Turn(t, 1)
			c := kthwtest.Start(t, kthwtest.Options{NoWait: true})
			client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, Timeout: soon}
			kthwtest.WaitFor(t, "an answer", soon, func() error {
				resp, err := client.Get(fmt.Sprintf("https://127.0.0.1:%d/readyz", c.Ports.Secure))
				if err != nil {
					return err
				}
				return resp.Body.Close()
			})
			inOrderAfter(t, c)
		})
	}
}

// servesInVain stops a controller as soon as its etcd serves, and reports whether its API server began to serve after that.
func servesInVain(t *testing.T) bool {
	t.Helper()
	c := kthwtest.Start(t, kthwtest.Options{NoWait: true, Args: []string{"--log-level=kube-apiserver=debug"}})
	const serving = "Serving securely on"
	kthwtest.WaitFor(t, "etcd and the first port", soon, func() error { // the API server is built after both
		if log := c.Log.String(); !strings.Contains(log, "component=etcd msg=ready") || !strings.Contains(log, serving) {
			return fmt.Errorf("not yet; exited: %v", c.Exited())
		}
		return nil
	})
	inOrderAfter(t, c)
	_, after, asked := strings.Cut(c.Log.String(), "asked to stop")
	if !asked {
		t.Fatalf("the stop is not in the log:\n%s", c.Log.Tail(40))
	}
	serves := regexp.MustCompile(fmt.Sprintf(`%s \S*:%d\b`, serving, c.Ports.Secure))
	return serves.MatchString(after)
}

// The ports of kube-controller-manager and kube-scheduler answer for as long as the API server does, also in a
// stop: its componentstatuses ask them.
func TestPortsOutliveTheAPIServer(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--kube-apiserver-arg=shutdown-delay-duration=5s"}})
	transport := insecure()
	url := func(port int, path string) string { return fmt.Sprintf("https://%s:%d%s", c.Address, port, path) }
	c.Signal(t, syscall.SIGTERM)
	asked := 0
	for ; !c.Exited(); asked++ {
		breathe(t.Context())
		for name, port := range map[string]int{kcm: c.Ports.ControllerManager, sched: c.Ports.Scheduler} {
			code, body, err := ask(transport, url(port, "/healthz"))
			// The API server is asked afterwards: it was there when the port was asked.
			if _, _, gone := ask(transport, url(c.Ports.Secure, "/livez")); gone == nil && (err != nil || code != http.StatusOK) {
				t.Fatalf("%s does not answer while the API server does: %d %q, %v", name, code, body, err)
			}
		}
	}
	if code := c.Wait(t, soon); code != 0 || asked < 2 {
		t.Errorf("got exit code %d, asked %d times; want 0, and more than once", code, asked)
	}
}
