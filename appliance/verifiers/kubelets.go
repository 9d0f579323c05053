package verifiers

import (
	"context"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/carotation/handshake"
)

// Kubelets lists the nodes and where their kubelets answer, as the API server finds them.
func Kubelets(ctx context.Context, client kubernetes.Interface) (all []handshake.Verifier, err error) {
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("the nodes are not known: %w", err)
	}
	for _, n := range nodes.Items {
		v := handshake.Verifier{Name: n.Name, Path: "/healthz"}
		for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeInternalDNS, corev1.NodeHostName, corev1.NodeExternalIP, corev1.NodeExternalDNS} {
			for _, a := range n.Status.Addresses {
				if port := n.Status.DaemonEndpoints.KubeletEndpoint.Port; a.Type == kind && v.Address == "" && port > 0 {
					v.Address = net.JoinHostPort(a.Address, strconv.Itoa(int(port)))
				}
			}
		}
		all = append(all, v)
	}
	return all, nil
}
