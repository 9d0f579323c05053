package access

import (
	"context"
	"sync/atomic"
	"testing"

	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/tools/cache"
)

// A refusal is final only once the rights were read before it was asked for.
func TestRightsThatAreNotReadYet(t *testing.T) {
	var questions, checks atomic.Int32
	u := &unread{
		Authorizer: authorizer.AuthorizerFunc(func(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
			if questions.Add(1) < 3 {
				return authorizer.DecisionNoOpinion, "not bound", nil
			}
			return authorizer.DecisionAllow, "", nil
		}),
		synced: []cache.InformerSynced{func() bool { return true }, func() bool { return checks.Add(1) > 2 }},
	}
	if got, _, err := u.Authorize(t.Context(), nil); got != authorizer.DecisionAllow || err != nil {
		t.Errorf("a right that is read during the start: got %v, %v; want it allowed", got, err)
	}
	if got := questions.Load(); got != 3 {
		t.Errorf("got %d questions, want 3", got)
	}

	u.Authorizer = authorizer.AuthorizerFunc(func(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
		return authorizer.DecisionDeny, "no", nil
	})
	if got, reason, _ := u.Authorize(t.Context(), nil); got != authorizer.DecisionDeny || reason != "no" {
		t.Errorf("after the start: got %v, %q; want the refusal at once", got, reason)
	}

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	waits := &unread{Authorizer: u.Authorizer, synced: []cache.InformerSynced{func() bool { return false }}}
	if got, _, _ := waits.Authorize(gone, nil); got != authorizer.DecisionDeny {
		t.Errorf("a client that left: got %v, want the refusal", got)
	}
}
