package rbacseed

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
)

// roles and bindings are upstream's ClusterRoleModifier and
// ClusterRoleBindingClientAdapter with one difference: upstream's requests use
// context.TODO(), but a seed that waits for a hung apiserver must be able to stop.

type roles struct {
	ctx    context.Context
	client rbacv1client.ClusterRoleInterface
}

func (r roles) Get(_, name string) (reconciliation.RuleOwner, error) {
	got, err := r.client.Get(r.ctx, name, metav1.GetOptions{})
	return reconciliation.ClusterRoleRuleOwner{ClusterRole: got}, err
}

func (r roles) Create(in reconciliation.RuleOwner) (reconciliation.RuleOwner, error) {
	got, err := r.client.Create(r.ctx, in.(reconciliation.ClusterRoleRuleOwner).ClusterRole, metav1.CreateOptions{})
	return reconciliation.ClusterRoleRuleOwner{ClusterRole: got}, err
}

func (r roles) Update(in reconciliation.RuleOwner) (reconciliation.RuleOwner, error) {
	got, err := r.client.Update(r.ctx, in.(reconciliation.ClusterRoleRuleOwner).ClusterRole, metav1.UpdateOptions{})
	return reconciliation.ClusterRoleRuleOwner{ClusterRole: got}, err
}

type bindings struct {
	ctx    context.Context
	client rbacv1client.ClusterRoleBindingInterface
}

func (b bindings) Get(_, name string) (reconciliation.RoleBinding, error) {
	got, err := b.client.Get(b.ctx, name, metav1.GetOptions{})
	return reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: got}, err
}

func (b bindings) Create(in reconciliation.RoleBinding) (reconciliation.RoleBinding, error) {
	got, err := b.client.Create(b.ctx, in.(reconciliation.ClusterRoleBindingAdapter).ClusterRoleBinding, metav1.CreateOptions{})
	return reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: got}, err
}

func (b bindings) Update(in reconciliation.RoleBinding) (reconciliation.RoleBinding, error) {
	got, err := b.client.Update(b.ctx, in.(reconciliation.ClusterRoleBindingAdapter).ClusterRoleBinding, metav1.UpdateOptions{})
	return reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: got}, err
}

// Delete deletes the object that was read, not a newer one of the same name.
func (b bindings) Delete(_, name string, uid types.UID) error {
	return b.client.Delete(b.ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
}
