package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/test/kthwtest"
)

// TestRealNodeRestored restores a backup below a real kubelet, which runs all the time. A pod
// of the backup runs on, in the same container, and its token stays valid; a pod that came
// after the backup ends. The kubelet's watches begin anew: it runs a pod that comes after the
// restore, without a restart of its own.
func TestRealNodeRestored(t *testing.T) {
	if !onWorkerMachine(t) {
		return
	}
	c := kthwtest.Start(t, kthwtest.Options{Plain: true})
	kubelet := startWorker(t, c, os.Getenv(archiveEnv))
	name := deployHello(t, c)
	before := podOf(t, c, name)
	task, token := taskOf(t, before), tokenOf(t, before)
	const archives, identity = "/var/lib/archives", "/var/lib/identity.txt"
	run(t, kthwtest.Binary(t), "backup", "keygen", identity)
	run(t, kthwtest.Binary(t), "backup", "create", "--dir="+archives, "--recipient="+identity+".pub", "--config=")

	// What the restore forgets: writes that the kubelet has seen, a pod among them.
	for i := range 20 {
		c.Kubectl(t, "-n", namespace, "create", "configmap", fmt.Sprintf("late-%d", i))
	}
	late := runPod(t, c, "late")
	lateTask := taskOf(t, late)
	c.Signal(t, syscall.SIGTERM)
	if code := c.Wait(t, kthwtest.Soon); code != 0 {
		t.Fatalf("kthwd ended with %d", code)
	}
	files, err := filepath.Glob(archives + "/*.kthwd")
	if err != nil || len(files) != 1 {
		t.Fatalf("archives: %v, %v", files, err)
	}
	run(t, kthwtest.Binary(t), "backup", "restore", files[0], "--identity="+identity, "--replace-data", "--yes", "--config=")
	restored := time.Now()
	c = kthwtest.Start(t, kthwtest.Options{Plain: true})

	waitHeartbeat(t, c, restored)
	waitNodeReady(t, c, kubelet)
	after := podOf(t, c, name)
	if after.UID != before.UID || after.Status.Phase != corev1.PodRunning || containerOf(after) != containerOf(before) {
		t.Errorf("the pod was %s in %+v, and is %s in %+v", before.UID, containerOf(before), after.UID, containerOf(after))
	}
	if now := taskOf(t, after); now != task {
		t.Errorf("the container was %q, and is %q", task, now)
	}
	if who, err := reviewToken(t, c, token); err != nil || who != "system:serviceaccount:"+namespace+":default" {
		t.Errorf("the token that the pod has: %q, %v", who, err)
	}
	runPod(t, c, "new") // by an event, or by the list that begins a watch
	kthwtest.WaitFor(t, "end of the pod that the restored cluster does not know", kthwtest.Soon, func() error {
		if all := run(t, "ctr", "-n", "k8s.io", "tasks", "list"); strings.Contains(all, strings.Fields(lateTask)[0]) {
			return errors.New("its container runs")
		}
		return nil
	})
	if now := taskOf(t, podOf(t, c, name)); now != task {
		t.Errorf("the container was %q, and is %q in the end", task, now)
	}
	t.Run("logs and exec", func(t *testing.T) { wantAllowed(t, c, kubelet, name) })
	c.Kubectl(t, "-n", namespace, "delete", "pod", "new", "--wait=false")
	t.Run("deleted", func(t *testing.T) { wantDeleted(t, c) })
}

func podOf(t *testing.T, c *kthwtest.Controller, name string) *corev1.Pod {
	t.Helper()
	pod, err := c.Client(t).CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// runPod makes a pod, and waits until the kubelet runs it.
func runPod(t *testing.T, c *kthwtest.Controller, name string) (pod *corev1.Pod) {
	t.Helper()
	c.Kubectl(t, "-n", namespace, "run", name, "--image="+helloImage, "--image-pull-policy=Never", "--command", "--", "/hello", "serve")
	kthwtest.WaitFor(t, "pod "+name+" running", kthwtest.Soon, func() error {
		if pod = podOf(t, c, name); pod.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("%s: %v", pod.Status.Phase, pod.Status.ContainerStatuses)
		}
		return nil
	})
	return pod
}

// container is what changes when a container is started anew.
type container struct {
	id       string
	restarts int32
	started  time.Time
}

func containerOf(pod *corev1.Pod) (c container) {
	for _, s := range pod.Status.ContainerStatuses {
		c.id, c.restarts = s.ContainerID, s.RestartCount
		if s.State.Running != nil {
			c.started = s.State.Running.StartedAt.Time
		}
	}
	return c
}

// taskOf is the line of containerd about a pod's container: its ID, process and state.
func taskOf(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	id := strings.TrimPrefix(containerOf(pod).id, "containerd://")
	for line := range strings.Lines(run(t, "ctr", "-n", "k8s.io", "tasks", "list")) {
		if fields := strings.Fields(line); id != "" && len(fields) == 3 && fields[0] == id && fields[2] == "RUNNING" {
			return strings.Join(fields, " ")
		}
	}
	t.Fatalf("containerd does not run %q of %s", id, pod.Name)
	return ""
}

// tokenOf is the token that the kubelet has put into a pod.
func tokenOf(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("/var/lib/kubelet/pods", string(pod.UID), "volumes/kubernetes.io~projected/*/token"))
	if err != nil || len(files) != 1 {
		t.Fatalf("tokens of %s: %v, %v", pod.Name, files, err)
	}
	return readFile(t, files[0])
}

// reviewToken asks the API server whose a token is.
func reviewToken(t *testing.T, c *kthwtest.Controller, token string) (string, error) {
	t.Helper()
	config := rest.AnonymousClientConfig(c.RESTConfig(t))
	config.BearerToken = token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return "", err
	}
	review, err := client.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return review.Status.UserInfo.Username, nil
}

// waitHeartbeat waits until the kubelet has renewed its lease since a moment.
func waitHeartbeat(t *testing.T, c *kthwtest.Controller, since time.Time) {
	t.Helper()
	kthwtest.WaitFor(t, "lease of the node renewed", kthwtest.Soon, func() error {
		lease, err := c.Client(t).CoordinationV1().Leases("kube-node-lease").Get(t.Context(), workerName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if at := lease.Spec.RenewTime; at == nil || at.Time.Before(since) {
			return fmt.Errorf("renewed at %v", at)
		}
		return nil
	})
}
