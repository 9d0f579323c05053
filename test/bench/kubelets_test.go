package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// A kubelet's periods.
const (
	renewEvery    = 10 * time.Second
	leaseDuration = 40 // seconds
	reportEvery   = 5 * time.Minute
	watchAgain    = time.Second
)

// kubelets speak to the API as the kubelets of many nodes do: each renews a lease, reports the
// node's status, and watches its node and its pods, whose status it writes. They share a few
// connections.
type kubelets struct {
	clients []*kubernetes.Clientset
	names   []string
	cancel  context.CancelFunc
	all     sync.WaitGroup
}

// startKubelets starts the kubelets of nodes that exist.
func startKubelets(clients []*kubernetes.Clientset, names []string) *kubelets {
	ctx, cancel := context.WithCancel(context.Background())
	k := &kubelets{clients: clients, names: names, cancel: cancel}
	for i, name := range names {
		client := clients[i%len(clients)]
		after := renewEvery * time.Duration(i) / time.Duration(len(names))
		k.all.Go(func() { renewLease(ctx, client, name, after) })
		k.all.Go(func() { reportNode(ctx, client, name, after*time.Duration(reportEvery/renewEvery)) })
		k.all.Go(func() { watchNode(ctx, client, name) })
		k.all.Go(func() { watchPods(ctx, client, name) })
	}
	return k
}

// stop returns when all of them have stopped.
func (k *kubelets) stop() {
	k.cancel()
	k.all.Wait()
}

// every does something after a while and then regularly, until ctx ends.
func every(ctx context.Context, after, period time.Duration, do func()) {
	timer := time.NewTimer(after)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			do()
			timer.Reset(period)
		}
	}
}

// renewLease writes the lease as it last was, as a kubelet does, and reads it after a failure.
func renewLease(ctx context.Context, client *kubernetes.Clientset, name string, after time.Duration) {
	leases := client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	duration := int32(leaseDuration)
	var last *coordinationv1.Lease
	every(ctx, after, renewEvery, func() {
		now := metav1.NowMicro()
		var err error
		if last == nil {
			if last, err = leases.Get(ctx, name, metav1.GetOptions{}); err != nil {
				last, err = leases.Create(ctx, &coordinationv1.Lease{
					ObjectMeta: metav1.ObjectMeta{Name: name},
					Spec:       coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &duration, RenewTime: &now},
				}, metav1.CreateOptions{})
			}
		} else {
			last.Spec.RenewTime = &now
			last, err = leases.Update(ctx, last, metav1.UpdateOptions{})
		}
		if err != nil {
			last = nil
		}
	})
}

// reportNode writes the time of the node's condition.
func reportNode(ctx context.Context, client *kubernetes.Clientset, name string, after time.Duration) {
	every(ctx, after, reportEvery, func() {
		patch := fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","lastHeartbeatTime":%q}]}}`,
			time.Now().UTC().Format(time.RFC3339))
		_, _ = client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status") // the next one follows
	})
}

func watchNode(ctx context.Context, client *kubernetes.Clientset, name string) {
	for ctx.Err() == nil {
		w, err := client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: named(name), ResourceVersion: "0"})
		if err == nil {
			for range w.ResultChan() {
			}
		}
		sleep(ctx, watchAgain)
	}
}

// watchPods runs the pods of a node: each is Running as soon as it is seen.
func watchPods(ctx context.Context, client *kubernetes.Clientset, name string) {
	selector := fields.OneTermEqualSelector("spec.nodeName", name).String()
	for ctx.Err() == nil {
		w, err := client.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{FieldSelector: selector, ResourceVersion: "0"})
		if err == nil {
			for e := range w.ResultChan() {
				if pod, ok := e.Object.(*corev1.Pod); ok && pod.Status.Phase == corev1.PodPending {
					_, _ = client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, runningPod(pod), metav1.PatchOptions{}, "status")
				}
			}
		}
		sleep(ctx, watchAgain)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// runningPod is the patch by which a kubelet reports that all containers run.
func runningPod(pod *corev1.Pod) []byte {
	now := metav1.Now()
	const ip = "198.51.100.7" // from the addresses for documentation
	s := corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &now, HostIP: ip, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, QOSClass: corev1.PodQOSBurstable}
	for _, kind := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady} {
		s.Conditions = append(s.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	for _, c := range pod.Spec.Containers {
		started := true
		s.ContainerStatuses = append(s.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, Ready: true, Started: &started,
			ImageID:     c.Image + "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			ContainerID: "containerd://0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			State:       corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	patch, err := json.Marshal(map[string]any{"status": s})
	if err != nil {
		panic(err) // a value of this file
	}
	return patch
}
