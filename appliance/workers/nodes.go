package workers

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/advice"
)

// Node is a worker node as kthwd node list shows it.
type Node struct {
	Name    string    `json:"name"`
	Ready   bool      `json:"ready"`
	Address string    `json:"address,omitempty"`
	Kubelet string    `json:"kubelet,omitempty"` // its version
	Token   string    `json:"token,omitempty"`   // with which it has joined; empty for one that came another way
	Ranges  []string  `json:"ranges,omitempty"`
	Since   time.Time `json:"since"`
}

// ListNodes returns the nodes, by name.
func ListNodes(ctx context.Context, client kubernetes.Interface, etcd *clientv3.Client) ([]Node, error) {
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	nodes := []Node{}
	for _, n := range list.Items {
		var record joined
		if _, err := get(ctx, etcd, nodesPrefix+n.Name, &record); err != nil {
			return nil, err
		}
		node := Node{Name: n.Name, Kubelet: n.Status.NodeInfo.KubeletVersion, Token: record.Token, Ranges: record.Ranges, Since: n.CreationTimestamp.Time}
		for _, c := range n.Status.Conditions {
			node.Ready = node.Ready || c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		}
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				node.Address = cmp.Or(node.Address, a.Address)
			}
		}
		nodes = append(nodes, node)
	}
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return nodes, nil
}

// RemoveNode ends the membership of a node: its certificates of before are refused from then
// on, and the Node is deleted. It returns an error if the cluster knows no such node.
func RemoveNode(ctx context.Context, client kubernetes.Interface, etcd *clientv3.Client, name string) error {
	if err := CheckName(name); err != nil {
		return advice.Usage(err)
	}
	var record joined
	revision, err := get(ctx, etcd, nodesPrefix+name, &record)
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if apierrors.IsNotFound(err) && revision == 0 {
		return advice.With(fmt.Errorf("there is no node %s", name), "kthwd node list shows those that there are")
	}
	// First the refusal, so that nothing that is deleted comes back.
	_, err = etcd.Txn(ctx).Then(put(removedPrefix+name, removal{At: time.Now().UTC()}), clientv3.OpDelete(nodesPrefix+name)).Commit()
	if err != nil {
		return err
	}
	if err := deleteRequests(ctx, client, name); err != nil {
		return err
	}
	err = client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	err = client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// deleteRequests deletes the node's requests, from which a certificate could still be made.
func deleteRequests(ctx context.Context, client kubernetes.Interface, name string) error {
	requests := client.CertificatesV1().CertificateSigningRequests()
	list, err := requests.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var errs []error
	for _, csr := range list.Items {
		if csr.Spec.Username != nodeUser+name && requestedFor(&csr) != name {
			continue
		}
		if err := requests.Delete(ctx, csr.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// requestedFor returns the node that a request is for; "" if it is not a node's.
func requestedFor(csr *certificatesv1.CertificateSigningRequest) string {
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil {
		return ""
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return ""
	}
	return NodeOf(&x509.Certificate{Subject: r.Subject})
}
