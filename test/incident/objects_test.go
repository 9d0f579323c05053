package incident

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// finding waits for a finding of a kind that has all the parts in its text, and returns it.
func finding(t *testing.T, c *kthwtest.Controller, kind string, parts ...string) (found status.Finding) {
	t.Helper()
	kthwtest.WaitFor(t, "finding "+kind, soon, func() error {
		r, err := c.Status()
		if err != nil {
			return err
		}
		for _, f := range r.Findings {
			if f.Kind == kind && !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(f.Text, p) }) {
				found = f
				return nil
			}
		}
		return fmt.Errorf("got %+v, want %q", r.Findings, parts)
	})
	if found.Since.IsZero() {
		t.Errorf("%s has no beginning", kind)
	}
	return found
}

// noFinding waits until there is no finding of a kind.
func noFinding(t *testing.T, c *kthwtest.Controller, kind string) {
	t.Helper()
	kthwtest.WaitFor(t, "no finding "+kind, soon, func() error {
		r, err := c.Status()
		if err != nil {
			return err
		}
		for _, f := range r.Findings {
			if f.Kind == kind {
				return fmt.Errorf("still %+v", f)
			}
		}
		return nil
	})
}

// TestSpoiltObjects has several incidents on one controller, side by side where they do not
// disturb each other. That of the bootstrap objects takes the administrator's rights away for
// a moment.
func TestSpoiltObjects(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	t.Run("bootstrap objects", func(t *testing.T) { bootstrapObjectsRestored(t, c) })
	makeDoomed(t, c)
	t.Run("side by side", func(t *testing.T) {
		for name, incidents := range map[string][]func(*testing.T, *kthwtest.Controller){
			"webhooks":         {brokenWebhooks},
			"served by others": {brokenAPIService, brokenConversion}, // a dead conversion keeps namespaces, too
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				for _, incident := range incidents {
					incident(t, c)
				}
			})
		}
	})
	applyText(t, c, kthwtest.DeadAPIService)
	finding(t, c, "apiservice", "v1.broken.example.com")
	_, _ = c.TryKubectl(t, "get", "--raw", "/apis/example.com/v2/namespaces/default/widgets")
	finding(t, c, "conversion", "widgets.example.com")
	stop(t, c) // in the middle of both
}

// makeDoomed makes the namespace that brokenAPIService deletes, with all that kthwd puts into
// it: brokenWebhooks refuses such objects.
func makeDoomed(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	c.Kubectl(t, "create", "namespace", "doomed")
	for _, object := range []string{"serviceaccount/default", "configmap/kube-root-ca.crt"} {
		kthwtest.WaitFor(t, object+" of the namespace", soon, func() error {
			_, err := c.TryKubectl(t, "get", "-n", "doomed", object)
			return err
		})
	}
}

// C10: bootstrap objects are deleted and changed while kthwd runs.
func bootstrapObjectsRestored(t *testing.T, c *kthwtest.Controller) {
	client := c.Client(t)
	roles, bindings := client.RbacV1().ClusterRoles(), client.RbacV1().ClusterRoleBindings()
	protectRole(t, client, "system:basic-user")

	for _, tt := range []struct {
		object string
		spoil  func() error
		back   func() error
		said   string
	}{
		{"clusterrole cluster-admin", func() error { return roles.Delete(t.Context(), "cluster-admin", metav1.DeleteOptions{}) },
			func() error { return hasRules(roles.Get(t.Context(), "cluster-admin", metav1.GetOptions{})) }, "was deleted, and was made again"},
		{"clusterrole system:kube-scheduler", func() error { return stripRole(t, client, "system:kube-scheduler") },
			func() error { return hasRules(roles.Get(t.Context(), "system:kube-scheduler", metav1.GetOptions{})) }, "had lost something"},
		{"clusterrolebinding cluster-admin", func() error { return bindings.Delete(t.Context(), "cluster-admin", metav1.DeleteOptions{}) },
			func() error { _, err := bindings.Get(t.Context(), "cluster-admin", metav1.GetOptions{}); return err }, ""},
		{"clusterrolebinding system:kube-apiserver", func() error { return bindings.Delete(t.Context(), "system:kube-apiserver", metav1.DeleteOptions{}) },
			func() error {
				_, err := bindings.Get(t.Context(), "system:kube-apiserver", metav1.GetOptions{})
				return err
			}, ""},
		{"clusterrole system:kube-apiserver-to-kubelet", func() error {
			return roles.Delete(t.Context(), "system:kube-apiserver-to-kubelet", metav1.DeleteOptions{})
		},
			func() error {
				return hasRules(roles.Get(t.Context(), "system:kube-apiserver-to-kubelet", metav1.GetOptions{}))
			}, ""},
		{"rolebinding kube-system/system::leader-locking-kube-scheduler", func() error {
			return client.RbacV1().RoleBindings("kube-system").Delete(t.Context(), "system::leader-locking-kube-scheduler", metav1.DeleteOptions{})
		}, func() error {
			_, err := client.RbacV1().RoleBindings("kube-system").Get(t.Context(), "system::leader-locking-kube-scheduler", metav1.GetOptions{})
			return err
		}, ""},
	} {
		if err := tt.spoil(); err != nil {
			t.Fatalf("%s: %v", tt.object, err)
		}
		kthwtest.WaitFor(t, tt.object+" made again", soon, tt.back)
		if tt.said == "" {
			continue
		}
		kthwtest.WaitFor(t, tt.object+" in the log", soon, func() error {
			if !strings.Contains(c.Log.String(), tt.object) {
				return errors.New("not yet")
			}
			return nil
		})
	}

	f := finding(t, c, "bootstrap_restored", "clusterrole cluster-admin")
	checkAuditCommand(t, f.Do, `"cluster-admin"`)
	look(t, c, incident{name: "C10 bootstrap roles deleted", kind: "bootstrap_restored", cause: "clusterrole cluster-admin", do: "grep -E ", bridge: "-"})
	kthwtest.WaitFor(t, "event", soon, func() error { return restoredEvent(t, client, "clusterrole cluster-admin was deleted") })
	if role, err := roles.Get(t.Context(), "system:basic-user", metav1.GetOptions{}); err != nil || len(role.Rules) > 0 {
		t.Errorf("a role with autoupdate false was changed: %+v, %v", role, err)
	}
}

// protectRole takes all rules from a role that is not to be made again.
func protectRole(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	role, err := client.RbacV1().ClusterRoles().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	role.Annotations["rbac.authorization.kubernetes.io/autoupdate"], role.Rules = "false", nil
	if _, err := client.RbacV1().ClusterRoles().Update(t.Context(), role, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func stripRole(t *testing.T, client kubernetes.Interface, name string) error {
	role, err := client.RbacV1().ClusterRoles().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	role.Rules = nil
	_, err = client.RbacV1().ClusterRoles().Update(t.Context(), role, metav1.UpdateOptions{})
	return err
}

func hasRules(role *rbacv1.ClusterRole, err error) error {
	if err == nil && len(role.Rules) == 0 {
		err = errors.New("no rules")
	}
	return err
}

func restoredEvent(t *testing.T, client kubernetes.Interface, said string) error {
	events, err := client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=BootstrapObjectRestored"})
	if err != nil {
		return err
	}
	for _, e := range events.Items {
		if strings.Contains(e.Message, said) {
			return nil
		}
	}
	return apierrors.NewNotFound(rbacv1.Resource("events"), said)
}

// checkAuditCommand runs a command that looks for whoever changed an object.
func checkAuditCommand(t *testing.T, command, name string) {
	t.Helper()
	out, err := exec.Command("sh", "-c", command).Output()
	if err != nil || !strings.Contains(string(out), name) {
		t.Errorf("%s: %v, %q", command, err, out)
	}
}

// C9: a webhook that cannot be called, an APIService without a server, a CRD whose
// conversion webhook is dead: each is named, with the command that ends it.
func brokenWebhooks(t *testing.T, c *kthwtest.Controller) {
	applyText(t, c, kthwtest.ClosedWebhook+"---"+openWebhook)
	for _, name := range []string{"webhook", "webhook_skipped"} {
		noFinding(t, c, name) // nothing has been asked of it yet
	}
	_, _ = c.TryKubectl(t, "create", "configmap", "refused")
	c.Kubectl(t, "create", "serviceaccount", "passed")
	f := finding(t, c, "webhook", "closed.example.com", "validatingwebhookconfiguration closed", "127.0.0.1:1")
	typeCommand(t, f.Do)
	noFinding(t, c, "webhook")
	f = finding(t, c, "webhook_skipped", "open.example.com", "mutatingwebhookconfiguration open")
	typeCommand(t, f.Do)
	noFinding(t, c, "webhook_skipped")
}

// C9: an aggregated API that nobody serves keeps namespaces in Terminating, while every
// component is ready.
func brokenAPIService(t *testing.T, c *kthwtest.Controller) {
	applyText(t, c, kthwtest.DeadAPIService)
	f := finding(t, c, "apiservice", "v1.broken.example.com", "service default/nobody")
	look(t, c, incident{
		name: "C9 broken APIService", kind: "apiservice",
		cause: "v1.broken.example.com", do: "delete apiservice v1.broken.example.com", bridge: "-", log: "broken.example.com",
	})
	c.Kubectl(t, "delete", "namespace", "doomed", "--wait=false")
	if stuck := finding(t, c, "namespace_stuck", "namespace doomed hangs in Terminating"); stuck.Do != f.Do {
		t.Errorf("of the namespace: %s; want %s", stuck.Do, f.Do)
	}
	typeCommand(t, f.Do)
	healthy(t, c, "apiservice")
	noFinding(t, c, "namespace_stuck")
}

func brokenConversion(t *testing.T, c *kthwtest.Controller) {
	applyText(t, c, kthwtest.DeadConversion)
	c.Kubectl(t, "wait", "--for=condition=Established", "crd/widgets.example.com")
	kthwtest.WaitFor(t, "widget", soon, func() error {
		out, err := c.TryKubectl(t, "create", "--raw", "/apis/example.com/v1/namespaces/default/widgets", "-f", fileWith(t, kthwtest.Widget))
		if err != nil && !strings.Contains(out, "AlreadyExists") {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	})
	_, _ = c.TryKubectl(t, "get", "--raw", "/apis/example.com/v2/namespaces/default/widgets")
	f := finding(t, c, "conversion", "widgets.example.com")
	typeCommand(t, f.Do)
}

// typeCommand types a command of a finding as it stands, with the kubectl and the kthwd of the
// test in place of those of the machine, and returns its output.
func typeCommand(t *testing.T, command string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(kthwtest.Kubectl(t))+":"+filepath.Dir(kthwtest.Binary(t))+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

func fileWith(t *testing.T, data string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "objects.yaml")
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func applyText(t *testing.T, c *kthwtest.Controller, objects string) {
	t.Helper()
	c.Kubectl(t, "apply", "-f", fileWith(t, objects))
}

// openWebhook refuses nothing, but is asked in vain for every new service account.
const openWebhook = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: open}
webhooks:
- name: open.example.com
  failurePolicy: Ignore
  sideEffects: None
  admissionReviewVersions: [v1]
  clientConfig: {url: "https://127.0.0.1:1/"}
  rules:
  - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [serviceaccounts]}
`
