package attack

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// With the profile cis, what the guide opens is closed, and a flag of the user's still wins.
func TestProfileCIS(t *testing.T) {
	t.Parallel()
	c := start(t, kthwtest.Options{Args: []string{"--profile=cis", "--kube-apiserver-arg=audit-log-maxbackup=12"}})
	t.Run("no alpha APIs", func(t *testing.T) {
		groups, err := c.Client(t).Discovery().ServerGroups()
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range groups.Groups {
			for _, v := range g.Versions {
				if strings.Contains(v.Version, "alpha") || strings.Contains(v.Version, "beta") {
					t.Errorf("%s is served", v.GroupVersion)
				}
			}
		}
	})
	t.Run("Pod Security", func(t *testing.T) {
		if err := c.privileged(t, "default"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "baseline") {
			t.Errorf("a privileged pod in the namespace default: got %v, want a refusal by Pod Security", err)
		}
		if err := c.privileged(t, "kube-system"); err != nil {
			t.Errorf("a privileged pod in kube-system: %v", err)
		}
	})
	t.Run("ports of loopback", func(t *testing.T) {
		if !attacker.apart() {
			t.Skip("needs root, for a network of its own")
		}
		for name, port := range map[string]int{"kube-controller-manager": c.Ports.ControllerManager, "kube-scheduler": c.Ports.Scheduler, "etcd's clients": c.Ports.EtcdClient} {
			if conn, err := attacker.Dial(t.Context(), net.JoinHostPort(c.Address, fmt.Sprint(port))); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("the port of %s from another machine: got %v, %v; want it refused", name, conn, err)
			}
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(port)))
			if err != nil {
				t.Errorf("the port of %s on loopback: %v", name, err)
				continue
			}
			conn.Close()
		}
	})
	t.Run("explain", func(t *testing.T) { explained(t, c) })
}

// privileged tries to make a privileged pod, when the namespace has its service account.
func (c *cluster) privileged(t *testing.T, namespace string) (err error) {
	t.Helper()
	yes := true
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "privileged"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "c", Image: "none.example/none", SecurityContext: &corev1.SecurityContext{Privileged: &yes}}}}}
	kthwtest.WaitFor(t, "the service account of "+namespace, kthwtest.Soon, func() error {
		_, err = c.Client(t).CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{})
		if err != nil && strings.Contains(err.Error(), "serviceaccount") {
			return err
		}
		return nil
	})
	return err
}

// explained compares what the running kthwd says of its flags with what is said offline.
func explained(t *testing.T, c *cluster) {
	explain := func(args ...string) string {
		out, err := exec.Command(kthwtest.Binary(t), append([]string{"explain", "--config=", "--data-dir=" + c.Dir}, args...)...).Output()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v: %s", err, exit.Stderr)
		}
		return string(out)
	}
	running := explain("--running", "kube-apiserver", "-o", "shell")
	offline := explain(slices.Concat([]string{"kube-apiserver", "-o", "shell", "--profile=cis", "--kube-apiserver-arg=audit-log-maxbackup=12"}, c.Args()[1:])...)
	if running != offline {
		t.Errorf("the running API server has\n%s\nand offline it is\n%s", running, offline)
	}
	text := explain("--running", "kube-apiserver")
	for _, want := range []string{"profile cis", "--audit-log-maxbackup=12", "yours, flag; kthwd's own: 10"} {
		if !strings.Contains(text, want) {
			t.Errorf("got\n%s\nwithout %q", text, want)
		}
	}
	if strings.Contains(text, "--runtime-config") && !strings.Contains(text, "without --runtime-config") {
		t.Errorf("the API server has --runtime-config:\n%s", text)
	}
}
