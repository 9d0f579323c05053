// Package fakenode makes nodes that are only objects: no machine, no kubelet, no container. It
// is for tests of what happens in the API: scheduling, Deployments that become available,
// controllers that look at pods.
//
//	nodes, err := fakenode.Create(ctx, client, 3, version)
//	go nodes.Run(ctx)
//
// A node is Ready and its lease is renewed, a pod that is bound to it is Running and Ready at
// once, and a pod that is deleted goes away at once. That is all: nothing is pulled, no
// probe is made, no pod ends by itself, so a Job never completes, and logs, exec and
// port-forward are refused. The objects say so.
//
// One goroutine writes for all nodes: a lease of each every 10 s, as a kubelet does, and one
// status for each pod.
package fakenode

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const (
	// Most bounds the requests for leases to ten a second.
	Most = 100

	// Label is on each node, for selectors.
	Label = "kthwd.io/fake-node"

	renewEvery    = 10 * time.Second
	leaseDuration = 40 // seconds, a kubelet's
	reason        = "FakeNode"
	message       = "a fake node of kthwd try: no container runs here"
	podCapacity   = 110
)

// Nodes are the fake nodes of a cluster.
type Nodes struct {
	client kubernetes.Interface
	names  []string
	queue  workqueue.TypedRateLimitingInterface[string]
	pods   listers.PodLister
}

// Name is the name of a node, from 1.
func Name(i int) string { return fmt.Sprintf("fake-%d", i) }

// Create makes n nodes that are Ready, and returns when all are. version is what they give as
// that of their kubelet.
func Create(ctx context.Context, client kubernetes.Interface, n int, version string) (*Nodes, error) {
	all := &Nodes{client: client, queue: workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())}
	for i := range n {
		name := Name(i + 1)
		all.names = append(all.names, name)
		if err := all.renew(ctx, name); err != nil {
			return nil, err
		}
		// With its status, as a kubelet does: kube-controller-manager may write the node at once.
		if _, err := client.CoreV1().Nodes().Create(ctx, node(name, version), metav1.CreateOptions{}); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func node(name, version string) *core.Node {
	return &core.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Labels:      map[string]string{core.LabelHostname: name, core.LabelOSStable: "linux", Label: "true"},
			Annotations: map[string]string{Label: message},
		},
		Status: status(name, version),
	}
}

func status(name, version string) core.NodeStatus {
	now := metav1.Now()
	condition := func(kind core.NodeConditionType, value core.ConditionStatus) core.NodeCondition {
		return core.NodeCondition{Type: kind, Status: value, Reason: reason, Message: message, LastHeartbeatTime: now, LastTransitionTime: now}
	}
	room := core.ResourceList{
		core.ResourceCPU: resource.MustParse("16"), core.ResourceMemory: resource.MustParse("64Gi"),
		core.ResourceEphemeralStorage: resource.MustParse("100Gi"), core.ResourcePods: *resource.NewQuantity(podCapacity, resource.DecimalSI),
	}
	return core.NodeStatus{
		Capacity: room, Allocatable: room,
		Conditions: []core.NodeCondition{
			condition(core.NodeMemoryPressure, core.ConditionFalse), condition(core.NodeDiskPressure, core.ConditionFalse),
			condition(core.NodePIDPressure, core.ConditionFalse), condition(core.NodeReady, core.ConditionTrue),
		},
		Addresses: []core.NodeAddress{{Type: core.NodeHostName, Address: name}, {Type: core.NodeInternalIP, Address: "127.0.0.1"}},
		// A port that refuses connections: on the usual one the kubelet of this machine may listen.
		DaemonEndpoints: core.NodeDaemonEndpoints{KubeletEndpoint: core.DaemonEndpoint{Port: 1}},
		NodeInfo:        core.NodeSystemInfo{KubeletVersion: version + "-fake", OperatingSystem: "linux", ContainerRuntimeVersion: "fake://0"},
	}
}

// renew writes the lease of a node.
func (n *Nodes) renew(ctx context.Context, name string) error {
	leases := n.client.CoordinationV1().Leases(core.NamespaceNodeLease)
	holder, duration, now := name, int32(leaseDuration), metav1.NowMicro()
	spec := coordination.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &duration, RenewTime: &now}
	found, err := leases.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordination.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	found.Spec = spec
	_, err = leases.Update(ctx, found, metav1.UpdateOptions{})
	return err
}

// Run renews leases and answers for pods until ctx ends.
func (n *Nodes) Run(ctx context.Context) {
	defer n.queue.ShutDown()
	context.AfterFunc(ctx, n.queue.ShutDown)
	all := informers.NewSharedInformerFactoryWithOptions(n.client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = "spec.nodeName!="
	}))
	pods := all.Core().V1().Pods()
	n.pods = pods.Lister()
	enqueue := func(o any) {
		if key, err := cache.MetaNamespaceKeyFunc(o); err == nil {
			n.queue.Add(key)
		}
	}
	_, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: enqueue, UpdateFunc: func(_, o any) { enqueue(o) }})
	if err != nil {
		return // only after a stop
	}
	all.Start(ctx.Done())
	go n.renewAll(ctx)
	for {
		key, stop := n.queue.Get()
		if stop {
			return
		}
		if err := n.pod(ctx, key); err != nil && ctx.Err() == nil {
			n.queue.AddRateLimited(key)
		} else {
			n.queue.Forget(key)
		}
		n.queue.Done(key)
	}
}

// renewAll renews the leases of all nodes, evenly over the time. A lease that cannot be
// written is written the next time: its duration is that of four.
func (n *Nodes) renewAll(ctx context.Context) {
	every := time.NewTicker(renewEvery / time.Duration(len(n.names)))
	defer every.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			_ = n.renew(ctx, n.names[i%len(n.names)])
		}
	}
}

// pod makes a pod of a fake node Running, or lets it go.
func (n *Nodes) pod(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	p, err := n.pods.Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) || err != nil || !n.has(p.Spec.NodeName) {
		return nil
	}
	pods := n.client.CoreV1().Pods(namespace)
	switch {
	case p.DeletionTimestamp != nil:
		now := int64(0)
		err = pods.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &p.UID}})
	case p.Status.Phase == core.PodPending || p.Status.Phase == "":
		_, err = pods.UpdateStatus(ctx, running(p), metav1.UpdateOptions{})
	}
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // a newer version of it will come
		return nil
	}
	return err
}

func (n *Nodes) has(name string) bool { return slices.Contains(n.names, name) }

// running returns the pod as a kubelet reports it once all containers run and are ready.
func running(p *core.Pod) *core.Pod {
	p = p.DeepCopy()
	now := metav1.Now()
	s := &p.Status
	s.Phase, s.StartTime, s.HostIP, s.HostIPs = core.PodRunning, &now, "127.0.0.1", []core.HostIP{{IP: "127.0.0.1"}}
	// From the addresses for documentation: nothing answers there.
	s.PodIP = fmt.Sprintf("198.51.100.%d", 1+number(string(p.UID))%254)
	s.PodIPs = []core.PodIP{{IP: s.PodIP}}
	s.Conditions = nil
	for _, kind := range []core.PodConditionType{core.PodReadyToStartContainers, core.PodInitialized, core.ContainersReady, core.PodReady, core.PodScheduled} {
		s.Conditions = append(s.Conditions, core.PodCondition{Type: kind, Status: core.ConditionTrue, LastTransitionTime: now})
	}
	for _, gate := range p.Spec.ReadinessGates {
		s.Conditions = append(s.Conditions, core.PodCondition{Type: gate.ConditionType, Status: core.ConditionTrue, LastTransitionTime: now})
	}
	s.InitContainerStatuses, s.ContainerStatuses = nil, nil
	for _, c := range p.Spec.InitContainers {
		state := core.ContainerState{Terminated: &core.ContainerStateTerminated{Reason: "Completed", StartedAt: now, FinishedAt: now}}
		if c.RestartPolicy != nil && *c.RestartPolicy == core.ContainerRestartPolicyAlways {
			state = core.ContainerState{Running: &core.ContainerStateRunning{StartedAt: now}}
		}
		s.InitContainerStatuses = append(s.InitContainerStatuses, container(c, state))
	}
	for _, c := range p.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, container(c, core.ContainerState{Running: &core.ContainerStateRunning{StartedAt: now}}))
	}
	return p
}

func container(c core.Container, state core.ContainerState) core.ContainerStatus {
	started := state.Running != nil
	return core.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: "fake://" + c.Image, ContainerID: "fake://" + c.Name, State: state, Ready: true, Started: &started}
}

// number is always the same for a text.
func number(text string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(text)) // never fails
	return h.Sum32()
}
