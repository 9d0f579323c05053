// Package backup restores a cluster with the real binary: onto another machine's name and
// address, from an encrypted archive.
package backup

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// run runs a verb, and returns its standard output.
func run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kthwd %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// refused runs a verb that must fail with all of want in what it says.
func refused(t *testing.T, want []string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), kthwtest.Binary(t), args...).CombinedOutput()
	for _, w := range want {
		if err == nil || !strings.Contains(string(out), w) {
			t.Errorf("kthwd %s: got %v, want %q:\n%s", strings.Join(args, " "), err, w, out)
		}
	}
}

// snapshots is how many Snapshot requests etcd has had.
func snapshots(t *testing.T, c *kthwtest.Controller) (n int) {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://%s:%d/metrics/etcd", c.Address, c.Ports.Metrics))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(body), "grpc_server_started_total") {
		t.Fatalf("etcd's metrics: %v\n%.500s", err, body)
	}
	for line := range strings.Lines(string(body)) {
		var count int
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if strings.HasPrefix(series, "grpc_server_started_total{") && strings.Contains(series, `grpc_method="Snapshot"`) {
			if _, err := fmt.Sscan(value, &count); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			n += count
		}
	}
	return n
}

// TestRestoredElsewhere makes an encrypted archive of a controller, loses its machine, and
// restores it under another name and address: every object has its UID, a token of back
// then is valid, and the lost API server is no endpoint.
func TestRestoredElsewhere(t *testing.T) {
	dir := t.TempDir()
	identity, archives := filepath.Join(dir, "key.txt"), filepath.Join(dir, "archives")
	run(t, "backup", "keygen", identity)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--service-cluster-ip-range=10.44.0.0/16"}})
	c.WaitReady(t)
	client := c.Client(t)
	secret, err := client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"a": "b"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var token string
	kthwtest.WaitFor(t, "a token", kthwtest.Soon, func() error {
		r, err := client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authv1.TokenRequest{}, metav1.CreateOptions{})
		if err == nil {
			token = r.Status.Token
		}
		return err
	})
	out := run(t, "backup", "create", "--config=", "--data-dir="+c.Dir, "--dir="+archives, "--recipient="+identity+".pub")
	file, _, _ := strings.Cut(out, "\n")
	if !strings.Contains(out, "decrypted  1 of secrets") || !strings.Contains(out, "encrypted") {
		t.Errorf("the archive:\n%s", out)
	}
	if n := snapshots(t, c); n != 0 {
		t.Errorf("etcd was asked for %d snapshots, whose messages cost the daemon memory; want the copy of its own", n)
	}
	for want, args := range map[string][]string{"  yes        unknown  ": nil, "  yes        yes     ": {"--identity=" + identity}} {
		if list := run(t, append([]string{"backup", "list", "--config=", "--dir=" + archives}, args...)...); !strings.Contains(list, want) {
			t.Errorf("kthwd backup list %v: want %q in\n%s", args, want, list)
		}
	}
	refused(t, []string{"encrypted", "--identity"}, "backup", "verify", file)
	refused(t, []string{"in use by another kthwd"}, "backup", "restore", file, "--config=", "--identity="+identity, "--data-dir="+c.Dir, "--replace-data", "--yes")
	c.Signal(t, syscall.SIGKILL)
	c.Wait(t, kthwtest.Soon)

	restored := filepath.Join(dir, "restored")
	begun := time.Now()
	run(t, "backup", "restore", file, "--config=", "--identity="+identity, "--data-dir="+restored, "--name=new", "--advertise-address=127.0.0.2", "--yes")
	refused(t, []string{"holds data of etcd", "--replace-data"}, "backup", "restore", file, "--config=", "--identity="+identity, "--data-dir="+restored, "--yes")
	again := kthwtest.Start(t, kthwtest.Options{Dir: restored, File: filepath.Join(restored, "kthwd.yaml"), Address: "127.0.0.2", Ports: &c.Ports})
	again.WaitReady(t)
	if service, err := again.Client(t).CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{}); err != nil || service.Spec.ClusterIP != "10.44.0.1" {
		t.Errorf("the service kubernetes in the range of back then: %v, %v", service, err)
	}
	if file, err := os.ReadFile(again.File()); err != nil || !strings.Contains(string(file), "service-cluster-ip-range: 10.44.0.0/16") {
		t.Errorf("the settings of back then: %v\n%s", err, file)
	}
	t.Logf("restored and ready after %v", time.Since(begun).Round(100*time.Millisecond))
	client = again.Client(t)
	same, err := client.CoreV1().Secrets("default").Get(t.Context(), "s", metav1.GetOptions{})
	if err != nil || same.UID != secret.UID || string(same.Data["a"]) != "b" {
		t.Errorf("the secret: %v, %v", same, err)
	}
	review, err := client.AuthenticationV1().TokenReviews().Create(t.Context(), &authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated {
		t.Errorf("the token of back then: %+v, %v", review, err)
	}
	leases, err := again.Etcd(t).Get(t.Context(), "/registry/masterleases/127.0.0.1") // no endpoint: it is a loopback address
	if err != nil || len(leases.Kvs) != 0 {
		t.Errorf("the lost API server has a lease: %v, %v", leases, err)
	}
	if _, err := os.Stat(filepath.Join(restored, "restore.json")); err == nil {
		t.Error("restore.json is still there")
	}

	// A second restore takes the place of these data, and the commands that it prints put them back.
	later, err := client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "later"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	again.Signal(t, syscall.SIGTERM)
	again.Wait(t, kthwtest.Soon)
	out = run(t, "backup", "restore", file, "--config=", "--identity="+identity, "--data-dir="+restored, "--name=new", "--advertise-address=127.0.0.2", "--replace-data", "--yes")
	if !strings.Contains(out, "They were not verified") {
		t.Errorf("of the old data:\n%s", out)
	}
	goBack(t, out)
	last := kthwtest.Start(t, kthwtest.Options{Dir: restored, File: filepath.Join(restored, "kthwd.yaml"), Address: "127.0.0.2", Ports: &c.Ports})
	last.WaitReady(t)
	if same, err := last.Client(t).CoreV1().ConfigMaps("default").Get(t.Context(), "later", metav1.GetOptions{}); err != nil || same.UID != later.UID {
		t.Errorf("an object of before the second restore: %v, %v", same, err)
	}
}

// goBack runs the commands that a verb has printed for the way back.
func goBack(t *testing.T, out string) {
	t.Helper()
	_, after, _ := strings.Cut(out, "To go back, ")
	_, commands, _ := strings.Cut(after, ":\n\n")
	if !strings.Contains(commands, "mv -T ") {
		t.Fatalf("no commands for the way back:\n%s", out)
	}
	if said, err := exec.CommandContext(t.Context(), "sh", "-euc", commands).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", commands, err, said)
	}
}
