package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

// TestNewUser is the guide's third part with one command: kthwd
// --role=controller and nothing else, then what a new user tries with kubectl.
func TestNewUser(t *testing.T) {
	if !onOwnMachine(t, "10.0.1.73/24") {
		return
	}
	c := kthwtest.Start(t, kthwtest.Options{Plain: true})
	for _, step := range []struct {
		name string
		try  func(*testing.T, *kthwtest.Controller)
	}{
		{"component statuses", tryComponentStatuses},
		{"readyz", tryReadyz},
		{"version", tryVersion},
		{"status", tryStatus},
		{"health bridge", tryHealthBridge},
		{"rbac seed", tryRBACSeed},
		{"deployment", tryDeployment},
		{"secret", trySecret},
		{"etcd asks for a certificate", tryEtcdWithoutCertificate},
		{"audit log", tryAuditLog},
		{"aggregated API", tryAggregatedAPI},
		{"restart", tryRestart},
	} {
		t.Run(step.name, func(t *testing.T) { step.try(t, c) })
	}
}

func tryComponentStatuses(t *testing.T, c *kthwtest.Controller) {
	out := c.Kubectl(t, "get", "componentstatuses", "--no-headers")
	for _, component := range []string{"scheduler", "controller-manager", "etcd-0"} {
		healthy := slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool {
			fields := strings.Fields(line)
			return len(fields) >= 2 && fields[0] == component && fields[1] == "Healthy"
		})
		if !healthy {
			t.Errorf("%s is not Healthy:\n%s", component, out)
		}
	}
	if strings.Contains(out, "Unhealthy") {
		t.Errorf("not all Healthy:\n%s", out)
	}
}

func tryReadyz(t *testing.T, c *kthwtest.Controller) {
	out := c.Kubectl(t, "get", "--raw", "/readyz?verbose")
	wantAll(t, out, "[+]etcd ok", "[+]poststarthook/rbac/bootstrap-roles ok", "readyz check passed")
	if strings.Contains(out, "[-]") {
		t.Errorf("a check fails:\n%s", out)
	}
}

func tryVersion(t *testing.T, c *kthwtest.Controller) {
	v := kubernetesVersion(t)
	wantAll(t, c.Kubectl(t, "version"), "Client Version: "+v+"\n", "Server Version: "+v+"\n")
}

func tryStatus(t *testing.T, _ *kthwtest.Controller) {
	out := run(t, kthwtest.Binary(t), "status")
	for _, component := range []string{"etcd", "kube-apiserver", "rbac-seed", "kube-controller-manager", "kube-scheduler", "health"} {
		listed := slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool {
			fields := strings.Fields(line)
			return len(fields) >= 2 && fields[0] == component && fields[1] == "ready"
		})
		if !listed {
			t.Errorf("%s is not listed as ready:\n%s", component, out)
		}
	}
}

func tryHealthBridge(t *testing.T, _ *kthwtest.Controller) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("needs curl")
	}
	out := run(t, "curl", "-sS", "--max-time", "10", "-H", "Host: kubernetes.default.svc.cluster.local", "-i", "http://127.0.0.1/healthz")
	head, body, _ := strings.Cut(out, "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 200 OK\r\n") || strings.TrimSpace(body) != "ok" {
		t.Errorf("got %q, want 200 and ok", out)
	}
}

// tryRBACSeed compares with the guide's two heredocs.
func tryRBACSeed(t *testing.T, c *kthwtest.Controller) {
	rbac := c.Client(t).RbacV1()
	role, err := rbac.ClusterRoles().Get(t.Context(), "system:kube-apiserver-to-kubelet", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if role.Annotations["rbac.authorization.kubernetes.io/autoupdate"] != "true" || role.Labels["kubernetes.io/bootstrapping"] != "rbac-defaults" {
		t.Errorf("role: got annotations %v and labels %v", role.Annotations, role.Labels)
	}
	verbs := map[string]string{}
	for _, rule := range role.Rules {
		for _, resource := range rule.Resources {
			verbs[strings.Join(rule.APIGroups, ",")+"/"+resource] = strings.Join(rule.Verbs, ",")
		}
	}
	want := map[string]string{"/nodes/proxy": "*", "/nodes/stats": "*", "/nodes/log": "*", "/nodes/spec": "*", "/nodes/metrics": "*"}
	if !maps.Equal(verbs, want) {
		t.Errorf("role: got rules %v, want %v", role.Rules, want)
	}
	binding, err := rbac.ClusterRoleBindings().Get(t.Context(), "system:kube-apiserver", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if want := (rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name}); binding.RoleRef != want {
		t.Errorf("binding: got %v, want %v", binding.RoleRef, want)
	}
	if want := []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "kubernetes"}}; !slices.Equal(binding.Subjects, want) {
		t.Errorf("binding: got %v, want %v", binding.Subjects, want)
	}
}

func tryDeployment(t *testing.T, c *kthwtest.Controller) {
	c.Kubectl(t, "create", "namespace", namespace)
	c.Kubectl(t, "-n", namespace, "create", "deployment", "web", "--image=example.com/web:1", "--replicas=2")
	addFakeNode(t, c)
	for _, pod := range waitBound(t, c, "web", 2) {
		if pod.Spec.NodeName != fakeNode {
			t.Errorf("%s is on %q, want %s", pod.Name, pod.Spec.NodeName, fakeNode)
		}
	}
	out := c.Kubectl(t, "-n", namespace, "get", "replicasets", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.ownerReferences[0].name} {.items[*].status.replicas}")
	if out != "web 2" {
		t.Errorf("replica sets: got owner and replicas %q, want %q", out, "web 2")
	}
}

func trySecret(t *testing.T, c *kthwtest.Controller) {
	c.Kubectl(t, "-n", namespace, "create", "secret", "generic", secretName, "--from-literal=number="+plaintext)
	for _, endpoint := range []string{"https://10.0.1.73:2379", "https://127.0.0.1:2379"} {
		wantSecret(t, c, endpoint, "secretbox")
	}
}

func tryEtcdWithoutCertificate(t *testing.T, c *kthwtest.Controller) {
	roots := certPool(t, pki.Layout{Dir: c.Dir}.EtcdCA())
	for _, address := range []string{"10.0.1.73:2379", "127.0.0.1:2379", "10.0.1.73:2380"} {
		dialer := &net.Dialer{Timeout: 10 * time.Second}
		conn, err := tls.DialWithDialer(dialer, "tcp", address, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})
		if err == nil { // TLS 1.3 tells the client only when it reads
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "certificate required") {
			t.Errorf("%s, without a certificate: got %v, want the alert \"certificate required\"", address, err)
		}
	}
}

// auditEvent is what the test reads of a line of the audit log.
type auditEvent struct {
	Verb      string                                     `json:"verb"`
	User      struct{ Username string }                  `json:"user"`
	ObjectRef struct{ Resource, Namespace, Name string } `json:"objectRef"`
	Status    struct{ Code int }                         `json:"responseStatus"`
}

func tryAuditLog(t *testing.T, c *kthwtest.Controller) {
	path := filepath.Join(c.Dir, "audit.log")
	wantAudited(t, path)
	log := readFile(t, path)
	for _, secret := range []string{plaintext, base64.StdEncoding.EncodeToString([]byte(plaintext))} {
		if strings.Contains(log, secret) {
			t.Errorf("%s has the content of a secret", path)
		}
	}
}

// wantAudited waits until the audit log has the creation of the workload's secret.
func wantAudited(t *testing.T, path string) {
	t.Helper()
	kthwtest.WaitFor(t, "creation of the secret in "+path, kthwtest.Soon, func() error {
		lines := strings.Split(readFile(t, path), "\n")
		for _, line := range lines {
			var e auditEvent
			if json.Unmarshal([]byte(line), &e) != nil || e.ObjectRef.Resource != "secrets" || e.ObjectRef.Name != secretName || e.Verb != "create" {
				continue
			}
			if e.User.Username != "admin" || e.ObjectRef.Namespace != namespace || e.Status.Code != 201 {
				t.Errorf("audited as %s", line)
			}
			return nil
		}
		return fmt.Errorf("not among %d lines", len(lines))
	})
}

// tryRestart starts kthwd again on what the first start made.
func tryRestart(t *testing.T, c *kthwtest.Controller) {
	files, objects := filesOf(t, c.Dir), objectsOf(t, c)
	stop(t, c)
	again := kthwtest.Start(t, kthwtest.Options{Plain: true})
	if now := filesOf(t, again.Dir); !maps.Equal(files, now) {
		t.Errorf("files changed: got %v, want %v", now, files)
	}
	if now := objectsOf(t, again); now != objects {
		t.Errorf("objects changed: got\n%s\nwant\n%s", now, objects)
	}
	wantSecret(t, again, "https://10.0.1.73:2379", "secretbox")
	tryComponentStatuses(t, again)
	tryStatus(t, again)
	again.Kubectl(t, "-n", namespace, "scale", "deployment", "web", "--replicas=3")
	beat(t, again)
	waitBound(t, again, "web", 3)
	stop(t, again)
}

// filesOf are the sums of the certificates, keys, kubeconfigs and documents.
func filesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".pem", ".kubeconfig", ".yaml":
			files[e.Name()] = fmt.Sprintf("%x", sha256.Sum256([]byte(readFile(t, filepath.Join(dir, e.Name())))))
		}
	}
	if len(files) < 20 {
		t.Fatalf("got %d files in %s, want more: %v", len(files), dir, slices.Sorted(maps.Keys(files)))
	}
	return files
}

// objectsOf lists objects with the identity that a new object would not have.
func objectsOf(t *testing.T, c *kthwtest.Controller) string {
	t.Helper()
	return c.Kubectl(t, "get", "namespaces,nodes,clusterroles,clusterrolebindings,deployments,replicasets,pods,secrets,services,serviceaccounts", "-A",
		"--sort-by=.metadata.uid", "-o", `jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name} {.metadata.uid}{"\n"}{end}`)
}
