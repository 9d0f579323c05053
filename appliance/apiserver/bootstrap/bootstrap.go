// Package bootstrap makes the objects that kube-apiserver makes at its start and never again: the
// bootstrap policy, the system priority classes and the APIServices of its own groups. Its hooks take
// the place of two slow ones of upstream's, which end the process when etcd is slow, and the Restore
// functions make an object again that is gone.
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	rbacclient "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"kthwd/appliance/pki"
	"kthwd/appliance/supervise"
	"kthwd/rbacseed"
)

const (
	bootstrapWorkers = 8
	bootstrapPause   = 250 * time.Millisecond
)

// hooks replace two slow hooks of upstream's. Those wait a second before they
// begin, write 134 objects one after the other, and end the process if etcd does not
// answer for 30 s
// (pkg/registry/rbac/rest/storage_rbac.go, pkg/registry/scheduling/rest/storage_scheduling.go).
var hooks = map[string]func(context.Context, kubernetes.Interface) error{
	rbacrest.PostStartHookName:       bootstrapRBAC,
	schedulingrest.PostStartHookName: bootstrapPriorityClasses,
}

// LeaveOutHooks prevents the registration of upstream's hooks, by the mechanism
// that upstream uses for an API server without RBAC (pkg/controlplane/apiserver/
// config.go). Call the returned function with the server that was built meanwhile: it
// registers kthwd's hooks under the same names, so that /readyz has the usual checks.
func LeaveOutHooks(config *genericapiserver.Config, log *slog.Logger) (register func(*genericapiserver.GenericAPIServer) error) {
	for name := range hooks {
		config.DisabledPostStartHooks.Insert(name)
	}
	return func(server *genericapiserver.GenericAPIServer) error {
		var errs []error
		for name, write := range hooks {
			config.DisabledPostStartHooks.Delete(name) // one set, shared by the servers of the chain
			errs = append(errs, server.AddPostStartHook(name, hook(log, write)))
		}
		return errors.Join(errs...)
	}
}

// hook repeats write until it succeeds or the server stops. It returns no
// error, because an error would end the process.
func hook(log *slog.Logger, write func(context.Context, kubernetes.Interface) error) genericapiserver.PostStartHookFunc {
	return func(hook genericapiserver.PostStartHookContext) error {
		loopback := rest.CopyConfig(hook.LoopbackClientConfig)
		client, err := kubernetes.NewForConfig(loopback)
		if err != nil {
			return err
		}
		for hook.Err() == nil {
			if err := write(hook, client); err == nil {
				return nil
			} else if hook.Err() == nil {
				log.Warn("bootstrap objects not written, trying again", "err", err)
			}
			supervise.Sleep(hook, bootstrapPause)
		}
		return nil
	}
}

// bootstrapRBAC reconciles upstream's bootstrap policy as upstream does, but in
// parallel: roles first, then the bindings that need them.
func bootstrapRBAC(ctx context.Context, client kubernetes.Interface) error {
	_, err := RestoreRoles(ctx, client)
	return err
}

// RestoreRoles makes upstream's bootstrap roles and bindings again where they
// are missing or lack something, by the rules of upstream's start: additions stay, and an
// object annotated rbac.authorization.kubernetes.io/autoupdate: "false" is left as it is.
// It returns what it has written, also beside an error.
func RestoreRoles(ctx context.Context, client kubernetes.Interface) ([]rbacseed.Change, error) {
	if err := primeAggregatedRoles(ctx, client); err != nil {
		return nil, err
	}
	if err := splitBindings(ctx, client); err != nil {
		return nil, err
	}
	existing, err := listClusterScoped(ctx, client)
	if err != nil {
		return nil, err
	}
	p := &policy{client: client, existing: existing}
	err = p.reconcileRoles(ctx)
	if err == nil {
		err = p.reconcileBindings(ctx)
	}
	slices.SortFunc(p.changes, func(a, b rbacseed.Change) int { return strings.Compare(a.Object, b.Object) })
	return p.changes, err
}

// policy is one reconciliation of the bootstrap policy.
type policy struct {
	client   kubernetes.Interface
	existing *clusterScoped

	mu      sync.Mutex // guards changes
	changes []rbacseed.Change
}

func (p *policy) reconcileRoles(ctx context.Context) error {
	roles := limited(ctx)
	for _, role := range append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...) {
		roles.Go(func() error { return p.clusterRole(role) })
	}
	for _, inNamespace := range bootstrappolicy.NamespaceRoles() {
		for _, role := range inNamespace {
			roles.Go(func() error { return p.role(role) })
		}
	}
	return roles.Wait()
}

func (p *policy) reconcileBindings(ctx context.Context) error {
	bindings := limited(ctx)
	for _, b := range append(append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...), administrators()) {
		bindings.Go(func() error { return p.clusterRoleBinding(b) })
	}
	for _, inNamespace := range bootstrappolicy.NamespaceRoleBindings() {
		for _, b := range inNamespace {
			bindings.Go(func() error { return p.roleBinding(b) })
		}
	}
	return bindings.Wait()
}

// administrators binds the group of admin.kubeconfig to cluster-admin. It has the label of
// upstream's own bindings, and so is made again when it is deleted.
func administrators() rbacv1.ClusterRoleBinding {
	return rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{
			Name: pki.AdminsGroup, Labels: map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
			Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
		},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: pki.AdminsGroup}},
	}
}

func limited(ctx context.Context) *errgroup.Group {
	g, _ := errgroup.WithContext(ctx)
	g.SetLimit(bootstrapWorkers)
	return g
}

// another controller may write the same objects at this moment
func again(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsServiceUnavailable(err)
}

// reconcile repeats run, which returns what it did to an object, while it loses races.
func (p *policy) reconcile(object string, run func() (rbacseed.Action, error)) error {
	var action rbacseed.Action
	err := retry.OnError(retry.DefaultBackoff, again, func() (err error) {
		action, err = run()
		return err
	})
	if err != nil {
		return fmt.Errorf("reconcile %s: %w", object, err)
	}
	if action.Wrote() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.changes = append(p.changes, rbacseed.Change{Object: object, Action: action})
	}
	return nil
}

// clusterScoped holds the existing objects and answers Get, so that a missing object, as
// 120 are at the first start, costs one request instead of two.
type clusterScoped struct {
	roles    map[string]*rbacv1.ClusterRole
	bindings map[string]*rbacv1.ClusterRoleBinding
}

func listClusterScoped(ctx context.Context, client kubernetes.Interface) (*clusterScoped, error) {
	c := &clusterScoped{map[string]*rbacv1.ClusterRole{}, map[string]*rbacv1.ClusterRoleBinding{}}
	roles, err := client.RbacV1().ClusterRoles().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range roles.Items {
		c.roles[roles.Items[i].Name] = &roles.Items[i]
	}
	bindings, err := client.RbacV1().ClusterRoleBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range bindings.Items {
		c.bindings[bindings.Items[i].Name] = &bindings.Items[i]
	}
	return c, nil
}

type listedRoles struct {
	rbacclient.ClusterRoleInterface
	listed map[string]*rbacv1.ClusterRole
}

func (l listedRoles) Get(_ context.Context, name string, _ metav1.GetOptions) (*rbacv1.ClusterRole, error) {
	if role, ok := l.listed[name]; ok {
		return role.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(rbacv1.Resource("clusterroles"), name)
}

type listedBindings struct {
	rbacclient.ClusterRoleBindingInterface
	listed map[string]*rbacv1.ClusterRoleBinding
}

func (l listedBindings) Get(_ context.Context, name string, _ metav1.GetOptions) (*rbacv1.ClusterRoleBinding, error) {
	if binding, ok := l.listed[name]; ok {
		return binding.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(rbacv1.Resource("clusterrolebindings"), name)
}

func (p *policy) clusterRole(role rbacv1.ClusterRole) error {
	roles := p.client.RbacV1().ClusterRoles()
	var asked rbacclient.ClusterRoleInterface = listedRoles{roles, p.existing.roles}
	return p.reconcile("clusterrole "+role.Name, func() (rbacseed.Action, error) {
		modifier := reconciliation.ClusterRoleModifier{Client: asked}
		asked = roles // after an error the object has changed since the list: read it again
		return reconcileRole(reconciliation.ClusterRoleRuleOwner{ClusterRole: role.DeepCopy()}, modifier)
	})
}

func (p *policy) role(role rbacv1.Role) error {
	return p.reconcile("role "+role.Namespace+"/"+role.Name, func() (rbacseed.Action, error) {
		return reconcileRole(reconciliation.RoleRuleOwner{Role: role.DeepCopy()},
			reconciliation.RoleModifier{Client: p.client.RbacV1(), NamespaceClient: p.client.CoreV1().Namespaces()})
	})
}

func reconcileRole(role reconciliation.RuleOwner, client reconciliation.RuleOwnerModifier) (rbacseed.Action, error) {
	r, err := (&reconciliation.ReconcileRoleOptions{Role: role, Client: client, Confirm: true}).Run()
	if err != nil {
		return "", err
	}
	return rbacseed.ActionOf(r.Operation, r.Protected), nil
}

func (p *policy) clusterRoleBinding(b rbacv1.ClusterRoleBinding) error {
	bindings := p.client.RbacV1().ClusterRoleBindings()
	var asked rbacclient.ClusterRoleBindingInterface = listedBindings{bindings, p.existing.bindings}
	return p.reconcile("clusterrolebinding "+b.Name, func() (rbacseed.Action, error) {
		adapter := reconciliation.ClusterRoleBindingClientAdapter{Client: asked}
		asked = bindings
		return reconcileBinding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: b.DeepCopy()}, adapter)
	})
}

func (p *policy) roleBinding(b rbacv1.RoleBinding) error {
	return p.reconcile("rolebinding "+b.Namespace+"/"+b.Name, func() (rbacseed.Action, error) {
		return reconcileBinding(reconciliation.RoleBindingAdapter{RoleBinding: b.DeepCopy()},
			reconciliation.RoleBindingClientAdapter{Client: p.client.RbacV1(), NamespaceClient: p.client.CoreV1().Namespaces()})
	})
}

func reconcileBinding(binding reconciliation.RoleBinding, client reconciliation.RoleBindingModifier) (rbacseed.Action, error) {
	r, err := (&reconciliation.ReconcileRoleBindingOptions{RoleBinding: binding, Client: client, Confirm: true}).Run()
	if err != nil {
		return "", err
	}
	return rbacseed.ActionOf(r.Operation, r.Protected), nil
}

// primeAggregatedRoles copies an administrator's changes to roles that became aggregated
// in Kubernetes 1.9, which an old cluster of the guide may still hold
// (storage_rbac.go:primeAggregatedClusterRoles).
func primeAggregatedRoles(ctx context.Context, client kubernetes.Interface) error {
	roles := client.RbacV1().ClusterRoles()
	for oldName, newName := range bootstrappolicy.ClusterRolesToAggregate() {
		_, err := roles.Get(ctx, newName, metav1.GetOptions{})
		if err == nil {
			continue
		}
		if !apierrors.IsNotFound(err) {
			return err
		}
		existing, err := roles.Get(ctx, oldName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if existing.AggregationRule != nil {
			return nil // primed in an earlier run
		}
		existing.Name, existing.ResourceVersion, existing.UID = newName, "", ""
		if _, err := roles.Create(ctx, existing, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

// splitBindings grants the second half of a binding that upstream split in two to the
// holders of the first (storage_rbac.go:primeSplitClusterRoleBindings).
func splitBindings(ctx context.Context, client kubernetes.Interface) error {
	bindings := client.RbacV1().ClusterRoleBindings()
	for existingName, template := range bootstrappolicy.ClusterRoleBindingsToSplit() {
		existing, err := bindings.Get(ctx, existingName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if _, err := bindings.Get(ctx, template.Name, metav1.GetOptions{}); err == nil || !apierrors.IsNotFound(err) {
			if err != nil {
				return err
			}
			continue
		}
		split := template.DeepCopy()
		split.Subjects, split.Labels, split.Annotations = existing.Subjects, existing.Labels, existing.Annotations
		if _, err := bindings.Create(ctx, split, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}
