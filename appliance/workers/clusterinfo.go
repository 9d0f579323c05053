package workers

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"

	"kthwd/appliance/advice"
	"kthwd/appliance/supervise"
)

const signPoll = 200 * time.Millisecond

// grants are the rights that nodes need to get and renew certificates. Upstream has the roles.
var grants = []struct{ name, role, group string }{
	{"kthwd:node-bootstrapper", "system:node-bootstrapper", Group},
	{"kthwd:node-certificate-rotation", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", nodeGroup},
}

// Open gives the bearers of tokens the right to ask for a certificate, and nodes the right to
// renew theirs. It keeps what an administrator has added.
func Open(ctx context.Context, client kubernetes.Interface) error {
	for _, g := range grants {
		subject := rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: g.group}
		want := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: g.name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: g.role},
			Subjects:   []rbacv1.Subject{subject},
		}
		bindings := client.RbacV1().ClusterRoleBindings()
		_, err := bindings.Create(ctx, want, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			if err != nil {
				return err
			}
			continue
		}
		there, err := bindings.Get(ctx, g.name, metav1.GetOptions{})
		switch {
		case err != nil:
			return err
		case there.RoleRef != want.RoleRef:
			return fmt.Errorf("clusterrolebinding %s is for the role %s, not for %s: delete it", g.name, there.RoleRef.Name, g.role)
		case slices.Contains(there.Subjects, subject):
			continue
		}
		there.Subjects = append(there.Subjects, subject)
		if _, err := bindings.Update(ctx, there, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// Publish writes the kubeconfig that describes the cluster into the ConfigMap cluster-info,
// and waits until kube-controller-manager has signed it with the token.
func Publish(ctx context.Context, client kubernetes.Interface, kubeconfig, tokenID string) error {
	maps := client.CoreV1().ConfigMaps(metav1.NamespacePublic)
	_, err := maps.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: bootstrapapi.ConfigMapClusterInfo, Namespace: metav1.NamespacePublic},
		Data:       map[string]string{bootstrapapi.KubeConfigKey: kubeconfig},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	for ctx.Err() == nil {
		there, err := maps.Get(ctx, bootstrapapi.ConfigMapClusterInfo, metav1.GetOptions{})
		if err != nil {
			return err
		}
		switch {
		case there.Data[bootstrapapi.KubeConfigKey] != kubeconfig:
			there.Data = map[string]string{bootstrapapi.KubeConfigKey: kubeconfig} // the signatures are of the old one
			_, err := maps.Update(ctx, there, metav1.UpdateOptions{})
			if err != nil && !apierrors.IsConflict(err) {
				return err
			}
		case there.Data[bootstrapapi.JWSSignatureKeyPrefix+tokenID] != "":
			return nil
		}
		supervise.Sleep(ctx, signPoll)
	}
	return advice.With(fmt.Errorf("kube-controller-manager has not signed cluster-info with the token %s", tokenID),
		"see whether it runs: kthwd status; its flag controllers must have bootstrap-signer-controller")
}
