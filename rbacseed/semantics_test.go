package rbacseed

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"
	"k8s.io/component-helpers/auth/rbac/validation"
)

// A cluster is the client that the cases below use. They run against the apiserver of the
// rest.Config: a real one in seed_integration_test.go, the stand-in of standin_test.go
// otherwise.
type cluster struct {
	t   *testing.T
	ctx context.Context
	rbacv1client.RbacV1Interface
}

// semantics tests the package's promises, case by case. Each case starts without the two
// objects; they are deleted at the end.
func semantics(t *testing.T, cfg *rest.Config) {
	client, err := rbacv1client.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		run  func(c cluster)
	}{
		{"fresh", testFresh},
		{"idempotent", testIdempotent},
		{"eight at once", testConcurrent},
		{"eight at once repair", testConcurrentRepair},
		{"damaged role", testDamagedRole},
		{"deleted role", testDeletedRole},
		{"deleted binding", testDeletedBinding},
		{"lost subject", testLostSubject},
		{"changed roleRef", testChangedRoleRef},
		{"autoupdate off", testAutoupdateOff},
		{"autoupdate off, nothing to do", testAutoupdateOffUnchanged},
		{"extras kept", testExtrasKept},
		{"other user", testOtherUser},
		{"restored", testRestore},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := cluster{t, t.Context(), client}
			c.reset()
			t.Cleanup(func() { cluster{t, context.Background(), client}.reset() })
			tt.run(c)
		})
	}
}

func (c cluster) reset() {
	c.t.Helper()
	for _, err := range []error{
		c.ClusterRoles().Delete(c.ctx, roleName, metav1.DeleteOptions{}),
		c.ClusterRoleBindings().Delete(c.ctx, BindingName, metav1.DeleteOptions{}),
	} {
		if err != nil && !apierrors.IsNotFound(err) {
			c.t.Fatal(err)
		}
	}
}

// apply applies for the default user and compares the result.
func (c cluster) apply(want Result) {
	c.t.Helper()
	got, err := Apply(c.ctx, c, "")
	if err != nil {
		c.t.Fatal(err)
	}
	if repairedBeside() { // whichever of the two is second has nothing to do
		got.Role, got.Binding = orUnchanged(got.Role, want.Role), orUnchanged(got.Binding, want.Binding)
	}
	if got != want {
		c.t.Errorf("Apply = %+v; want %+v", got, want)
	}
}

// repairedBeside reports whether the API server is in a kthwd, which repairs the two objects
// itself while the cases damage them.
func repairedBeside() bool { return os.Getenv(kubeconfigEnv) != "" }

func orUnchanged(got, want Action) Action {
	if got == Unchanged && want.Wrote() {
		return want
	}
	return got
}

func (c cluster) role() *rbacv1.ClusterRole {
	c.t.Helper()
	role, err := c.ClusterRoles().Get(c.ctx, roleName, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return role
}

func (c cluster) binding() *rbacv1.ClusterRoleBinding {
	c.t.Helper()
	binding, err := c.ClusterRoleBindings().Get(c.ctx, BindingName, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return binding
}

// changeRole changes the role, as kubectl edit does.
func (c cluster) changeRole(change func(*rbacv1.ClusterRole)) {
	c.t.Helper()
	role := c.role()
	change(role)
	if _, err := c.ClusterRoles().Update(c.ctx, role, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c cluster) changeBinding(change func(*rbacv1.ClusterRoleBinding)) {
	c.t.Helper()
	binding := c.binding()
	change(binding)
	if _, err := c.ClusterRoleBindings().Update(c.ctx, binding, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// pointElsewhere replaces the binding by one to another role.
func (c cluster) pointElsewhere() {
	c.t.Helper()
	binding := c.binding()
	if err := c.ClusterRoleBindings().Delete(c.ctx, BindingName, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
	binding.ObjectMeta = metav1.ObjectMeta{Name: BindingName}
	binding.RoleRef.Name = "view"
	if _, err := c.ClusterRoleBindings().Create(c.ctx, binding, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// wantSeed compares the stored objects with the manifests.
func (c cluster) wantSeed() {
	c.t.Helper()
	wantRole, wantBinding, err := objects("")
	if err != nil {
		c.t.Fatal(err)
	}
	role, binding := c.role(), c.binding()
	// The same rights: a repair brings them back as one rule for each resource.
	if ok, missing := validation.Covers(role.Rules, wantRole.Rules); !ok {
		c.t.Errorf("missing rules %v", missing)
	}
	if ok, extra := validation.Covers(wantRole.Rules, role.Rules); !ok {
		c.t.Errorf("extra rules %v", extra)
	}
	if diff := cmp.Diff(wantRole.Labels, role.Labels); diff != "" {
		c.t.Errorf("labels (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantRole.Annotations, role.Annotations); diff != "" {
		c.t.Errorf("annotations (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantBinding.Subjects, binding.Subjects); diff != "" {
		c.t.Errorf("subjects (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantBinding.RoleRef, binding.RoleRef); diff != "" {
		c.t.Errorf("roleRef (-want +got):\n%s", diff)
	}
}

// versions are the resource versions of both: they change with every write.
func (c cluster) versions() string {
	c.t.Helper()
	return c.role().ResourceVersion + " " + c.binding().ResourceVersion
}

// wantUntouched applies the seed and holds that nothing was written.
func (c cluster) wantUntouched(want Result) {
	c.t.Helper()
	before := c.versions()
	c.apply(want)
	if after := c.versions(); after != before {
		c.t.Errorf("resource versions %s; want %s as before", after, before)
	}
}

func testFresh(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	c.wantSeed()
	want, _, err := objects("")
	if err != nil {
		c.t.Fatal(err)
	}
	if diff := cmp.Diff(want.Rules, c.role().Rules); diff != "" {
		c.t.Errorf("rules (-want +got):\n%s", diff)
	}
}

func testIdempotent(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	c.wantUntouched(Result{Role: Unchanged, Binding: Unchanged})
}

// applyAtOnce applies the seed from eight controllers at once and holds that the work was
// done once.
func (c cluster) applyAtOnce() {
	c.t.Helper()
	const n = 8
	type answer struct {
		result Result
		err    error
	}
	answers, start := make(chan answer), make(chan struct{})
	for range n {
		go func() {
			<-start
			result, err := Apply(c.ctx, c, "")
			answers <- answer{result, err}
		}()
	}
	close(start)
	var roles, bindings []Action
	for range n {
		a := <-answers
		if a.err != nil {
			c.t.Error(a.err)
		}
		if a.result.Role != Unchanged {
			roles = append(roles, a.result.Role)
		}
		if a.result.Binding != Unchanged {
			bindings = append(bindings, a.result.Binding)
		}
	}
	if repairedBeside() && len(roles) <= 1 && len(bindings) <= 1 {
		return
	}
	if len(roles) != 1 || len(bindings) != 1 {
		c.t.Errorf("writes: role %q, binding %q; want one of each", roles, bindings)
	}
}

func testConcurrent(c cluster) {
	c.applyAtOnce()
	c.wantSeed()
}

func testConcurrentRepair(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	c.changeRole(func(r *rbacv1.ClusterRole) { r.Labels = nil })
	c.pointElsewhere()
	c.applyAtOnce()
	c.wantSeed()
}

func testDamagedRole(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	c.changeRole(func(r *rbacv1.ClusterRole) { r.Rules, r.Labels, r.Annotations = nil, nil, nil })
	c.apply(Result{Role: Updated, Binding: Unchanged})
	c.wantSeed()
}

func testDeletedRole(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	if err := c.ClusterRoles().Delete(c.ctx, roleName, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
	c.apply(Result{Role: Created, Binding: Unchanged})
	c.wantSeed()
}

func testDeletedBinding(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	if err := c.ClusterRoleBindings().Delete(c.ctx, BindingName, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
	c.apply(Result{Role: Unchanged, Binding: Created})
	c.wantSeed()
}

func testLostSubject(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	c.changeBinding(func(b *rbacv1.ClusterRoleBinding) { b.Subjects = nil })
	c.apply(Result{Role: Unchanged, Binding: Updated})
	c.wantSeed()
}

func testChangedRoleRef(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	c.pointElsewhere()
	c.apply(Result{Role: Unchanged, Binding: Recreated})
	c.wantSeed()
}

func testAutoupdateOff(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	c.changeRole(func(r *rbacv1.ClusterRole) {
		r.Annotations[rbacv1.AutoUpdateAnnotationKey] = "false"
		r.Rules[0].Resources = []string{"nodes/stats"}
	})
	c.pointElsewhere()
	c.changeBinding(func(b *rbacv1.ClusterRoleBinding) {
		b.Annotations = map[string]string{rbacv1.AutoUpdateAnnotationKey: "false"}
	})
	c.wantUntouched(Result{Role: LeftAlone, Binding: LeftAlone})
}

func testAutoupdateOffUnchanged(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	c.changeRole(func(r *rbacv1.ClusterRole) { r.Annotations[rbacv1.AutoUpdateAnnotationKey] = "false" })
	c.wantUntouched(Result{Role: Unchanged, Binding: Unchanged})
}

func testExtrasKept(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	c.changeRole(func(r *rbacv1.ClusterRole) {
		r.Labels["team"] = "platform"
		r.Rules = append(r.Rules, rbacv1.PolicyRule{
			APIGroups: []string{""}, Resources: []string{"nodes/configz"}, Verbs: []string{"get"}})
	})
	c.changeBinding(func(b *rbacv1.ClusterRoleBinding) {
		b.Labels = map[string]string{"team": "platform"}
		b.Subjects = append(b.Subjects, rbacv1.Subject{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "auditor"})
	})
	c.wantUntouched(Result{Role: Unchanged, Binding: Unchanged, ExtraRules: 1, ExtraSubjects: 1})

	// They also survive a repair.
	c.changeRole(func(r *rbacv1.ClusterRole) { r.Rules = r.Rules[1:] })
	c.apply(Result{Role: Updated, Binding: Unchanged, ExtraRules: 1, ExtraSubjects: 1})
	if got := c.role().Labels["team"]; got != "platform" {
		c.t.Errorf("the role's label team = %q; want platform", got)
	}
	if got := c.binding().Labels["team"]; got != "platform" {
		c.t.Errorf("the binding's label team = %q; want platform", got)
	}
}

func testOtherUser(c cluster) {
	c.apply(Result{Role: Created, Binding: Created})
	got, err := Apply(c.ctx, c, "kube-apiserver-kubelet-client")
	if want := (Result{Role: Unchanged, Binding: Updated, ExtraSubjects: 1}); err != nil || got != want {
		c.t.Errorf("Apply = %+v, %v; want %+v", got, err, want)
	}
	var users []string
	for _, s := range c.binding().Subjects {
		users = append(users, fmt.Sprint(s.Kind, " ", s.Name))
	}
	if want := []string{"User kubernetes", "User kube-apiserver-kubelet-client"}; !slices.Equal(users, want) {
		c.t.Errorf("subjects %q; want %q", users, want)
	}
}

func testRestore(c cluster) {
	s := New(Config{Client: func() (rbacv1client.RbacV1Interface, error) { return c, nil }})
	restore := func(want ...Change) {
		c.t.Helper()
		got, err := s.Restore(c.ctx)
		if err != nil {
			c.t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			c.t.Errorf("Restore = %v; want %v", got, want)
		}
	}
	restore() // nothing: it has not been applied, and Run does that
	if !s.apply(c.ctx) {
		c.t.Fatal("not applied")
	}
	restore()
	if err := c.ClusterRoles().Delete(c.ctx, roleName, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
	b := c.binding()
	b.Subjects = nil
	if _, err := c.ClusterRoleBindings().Update(c.ctx, b, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
	restore(Change{"clusterrole " + roleName, Created}, Change{"clusterrolebinding " + BindingName, Updated})
	restore()
}
