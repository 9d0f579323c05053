package access

import (
	"context"
	"sync/atomic"
	"time"

	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

const (
	rightsPatience = 10 * time.Second // a start under load; clients wait longer for an answer
	rightsPoll     = 20 * time.Millisecond
)

// unread is an authorizer that refuses nobody for rights that the API server has not read
// yet. Upstream opens the port first and reads roles and bindings afterwards, so a client that
// arrives between the two gets "forbidden", which it takes for an answer and does not repeat
// (k8s.io/kubernetes/pkg/kubeapiserver/authorizer/config.go asks listers that may be empty).
// Only members of system:masters have rights that need no binding.
type unread struct {
	authorizer.Authorizer
	synced []cache.InformerSynced
	read   atomic.Bool
}

// WaitForRights makes the authorizer wait until the roles and bindings of a start are read.
func WaitForRights(inner authorizer.Authorizer, shared informers.SharedInformerFactory) authorizer.Authorizer {
	rbac := shared.Rbac().V1()
	return &unread{Authorizer: inner, synced: []cache.InformerSynced{
		rbac.Roles().Informer().HasSynced, rbac.RoleBindings().Informer().HasSynced,
		rbac.ClusterRoles().Informer().HasSynced, rbac.ClusterRoleBindings().Informer().HasSynced,
	}}
}

// Authorize asks again while a refusal may come from rights that are not read yet, at most for
// rightsPatience or until ctx ends.
func (u *unread) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	for end := time.Now().Add(rightsPatience); ; {
		known := u.known() // before the question, or rights that are read during it would refuse
		decision, reason, err := u.Authorizer.Authorize(ctx, a)
		if decision == authorizer.DecisionAllow || known || time.Now().After(end) {
			return decision, reason, err
		}
		select {
		case <-time.After(rightsPoll):
		case <-ctx.Done():
			return decision, reason, err
		}
	}
}

func (u *unread) known() bool {
	if u.read.Load() {
		return true
	}
	for _, synced := range u.synced {
		if !synced() {
			return false
		}
	}
	u.read.Store(true)
	return true
}
