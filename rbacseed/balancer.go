package rbacseed

import (
	"bytes"
	"context"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"sigs.k8s.io/yaml"
)

// BalancerGroup is the group whose members get the rights of ApplyBalancer. A certificate is in
// it by its organization.
const BalancerGroup = "kthwd:load-balancers"

// balancer is what a load balancer may do.
type balancer struct {
	role    rbacv1.Role
	binding rbacv1.RoleBinding
	request rbacv1.ClusterRole
	bound   rbacv1.ClusterRoleBinding
}

func readBalancer() (*balancer, error) {
	const name = "manifests/load-balancer.yaml"
	data, err := manifests.ReadFile(name)
	if err != nil {
		return nil, err
	}
	b := &balancer{}
	into := []any{&b.role, &b.binding, &b.request, &b.bound}
	documents := bytes.Split(data, []byte("\n---\n"))
	if len(documents) != len(into) {
		return nil, fmt.Errorf("%s has %d objects, not %d", name, len(documents), len(into))
	}
	for i, document := range documents {
		if err := yaml.UnmarshalStrict(document, into[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return b, nil
}

// ApplyBalancer gives the members of BalancerGroup the rights of a load balancer's discovery, with
// the semantics of Apply. A cluster without such a load balancer does not need them.
func ApplyBalancer(ctx context.Context, client rbacv1client.RbacV1Interface) error {
	b, err := readBalancer()
	if err != nil {
		return err
	}
	for _, role := range []reconciliation.ReconcileRoleOptions{
		{Role: reconciliation.RoleRuleOwner{Role: &b.role}, Client: localRoles{ctx, client}, Confirm: true},
		{Role: reconciliation.ClusterRoleRuleOwner{ClusterRole: &b.request}, Client: roles{ctx, client.ClusterRoles()}, Confirm: true},
	} {
		if err := retry(ctx, func() error { _, err := role.Run(); return err }); err != nil {
			return fmt.Errorf("role %s: %w", role.Role.GetName(), err)
		}
	}
	for _, binding := range []reconciliation.ReconcileRoleBindingOptions{
		{RoleBinding: reconciliation.RoleBindingAdapter{RoleBinding: &b.binding}, Client: localBindings{ctx, client}, Confirm: true},
		{RoleBinding: reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &b.bound}, Client: bindings{ctx, client.ClusterRoleBindings()}, Confirm: true},
	} {
		if err := retry(ctx, func() error { _, err := binding.Run(); return err }); err != nil {
			return fmt.Errorf("binding %s: %w", binding.RoleBinding.GetName(), err)
		}
	}
	return nil
}

// localRoles and localBindings are upstream's RoleModifier and RoleBindingClientAdapter with the
// caller's context, and without the creation of a namespace: default is always there.

type localRoles struct {
	ctx    context.Context
	client rbacv1client.RolesGetter
}

func (r localRoles) Get(namespace, name string) (reconciliation.RuleOwner, error) {
	got, err := r.client.Roles(namespace).Get(r.ctx, name, metav1.GetOptions{})
	return reconciliation.RoleRuleOwner{Role: got}, err
}

func (r localRoles) Create(in reconciliation.RuleOwner) (reconciliation.RuleOwner, error) {
	got, err := r.client.Roles(in.GetNamespace()).Create(r.ctx, in.(reconciliation.RoleRuleOwner).Role, metav1.CreateOptions{})
	return reconciliation.RoleRuleOwner{Role: got}, err
}

func (r localRoles) Update(in reconciliation.RuleOwner) (reconciliation.RuleOwner, error) {
	got, err := r.client.Roles(in.GetNamespace()).Update(r.ctx, in.(reconciliation.RoleRuleOwner).Role, metav1.UpdateOptions{})
	return reconciliation.RoleRuleOwner{Role: got}, err
}

type localBindings struct {
	ctx    context.Context
	client rbacv1client.RoleBindingsGetter
}

func (b localBindings) Get(namespace, name string) (reconciliation.RoleBinding, error) {
	got, err := b.client.RoleBindings(namespace).Get(b.ctx, name, metav1.GetOptions{})
	return reconciliation.RoleBindingAdapter{RoleBinding: got}, err
}

func (b localBindings) Create(in reconciliation.RoleBinding) (reconciliation.RoleBinding, error) {
	got, err := b.client.RoleBindings(in.GetNamespace()).Create(b.ctx, in.(reconciliation.RoleBindingAdapter).RoleBinding, metav1.CreateOptions{})
	return reconciliation.RoleBindingAdapter{RoleBinding: got}, err
}

func (b localBindings) Update(in reconciliation.RoleBinding) (reconciliation.RoleBinding, error) {
	got, err := b.client.RoleBindings(in.GetNamespace()).Update(b.ctx, in.(reconciliation.RoleBindingAdapter).RoleBinding, metav1.UpdateOptions{})
	return reconciliation.RoleBindingAdapter{RoleBinding: got}, err
}

func (b localBindings) Delete(namespace, name string, uid types.UID) error {
	return b.client.RoleBindings(namespace).Delete(b.ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
}
