// Package rbacseed gives the apiserver its rights on kubelets: the ClusterRole and
// the ClusterRoleBinding that the tutorial applies by hand with kubectl, in
// rbac.authorization.k8s.io/v1.
//
//	s := rbacseed.New(rbacseed.Config{
//		User:   "kubernetes", // the CN of --kubelet-client-certificate
//		Client: func() (rbacv1client.RbacV1Interface, error) { … },
//	})
//	err := s.Run(ctx, ready) // start it once the apiserver is ready; blocks
//
// The objects are in manifests/*.yaml, embedded. They are reconciled once for each
// start by the code that the apiserver uses for its own bootstrap roles,
// k8s.io/component-helpers/auth/rbac/reconciliation, with the same semantics as
// EnsureRBACPolicy in kubernetes pkg/registry/rbac/rest/storage_rbac.go:
//
//   - what is missing comes back: the objects, rules (one for each resource that was
//     missing), the subject, labels, annotations;
//   - what somebody added stays: rules, subjects, labels. The Result counts extra
//     rules and subjects, and Run logs them, for they are rights. So the user of
//     an earlier start stays bound when User changes;
//   - an object annotated rbac.authorization.kubernetes.io/autoupdate: "false" is left
//     as it is, each of the two by itself;
//   - a binding with another roleRef, which cannot be changed, is deleted and made
//     again as in the manifest, without what had been added to it.
//
// Several controllers may do this at once: who loses a race reads again and finds
// the work done. Damage done later is repaired at the next start, not before.
package rbacseed

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"sigs.k8s.io/yaml"
)

//go:embed manifests/*.yaml
var manifests embed.FS

// DefaultUser is the tutorial's: the common name of kubernetes.pem.
const DefaultUser = "kubernetes"

// An Action is what Apply did to one object.
type Action string

// The actions, in the words that are logged.
const (
	Unchanged Action = "unchanged"
	Created   Action = "created"
	Updated   Action = "updated"
	Recreated Action = "recreated"  // deleted and created, for another roleRef
	LeftAlone Action = "left alone" // differs, but its autoupdate annotation is "false"
)

// actions translates upstream's operations.
var actions = map[reconciliation.ReconcileOperation]Action{
	reconciliation.ReconcileNone:     Unchanged,
	reconciliation.ReconcileCreate:   Created,
	reconciliation.ReconcileUpdate:   Updated,
	reconciliation.ReconcileRecreate: Recreated,
}

// action is what became of one object.
func action(op reconciliation.ReconcileOperation, protected bool) Action {
	if protected && op != reconciliation.ReconcileNone {
		return LeftAlone
	}
	return actions[op]
}

// A Result says what Apply did and what it found that is not of the seed.
type Result struct {
	Role, Binding Action
	ExtraRules    int // rules the role has beyond the manifest's; kept
	ExtraSubjects int // subjects the binding has beyond the user; kept
}

// Apply brings the role and the binding to what the manifests say, the binding's user
// being user (empty: DefaultUser). It does nothing when they fit already. Conflicts
// with others and "service unavailable" are tried again for half a second or so; every
// other error is returned at once, as client-go's with the object in front, and the
// Result then says how far it came.
func Apply(ctx context.Context, client rbacv1client.RbacV1Interface, user string) (Result, error) {
	var result Result
	role, binding, err := objects(user)
	if err != nil {
		return result, err
	}
	err = retry(ctx, func() error {
		opts := reconciliation.ReconcileRoleOptions{
			Role:    reconciliation.ClusterRoleRuleOwner{ClusterRole: role.DeepCopy()},
			Client:  roles{ctx, client.ClusterRoles()},
			Confirm: true,
		}
		r, err := opts.Run()
		if err != nil {
			return err
		}
		result.Role, result.ExtraRules = action(r.Operation, r.Protected), len(r.ExtraRules)
		return nil
	})
	if err != nil {
		return result, fmt.Errorf("clusterrole %s: %w", role.Name, err)
	}
	err = retry(ctx, func() error {
		opts := reconciliation.ReconcileRoleBindingOptions{
			RoleBinding: reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: binding.DeepCopy()},
			Client:      bindings{ctx, client.ClusterRoleBindings()},
			Confirm:     true,
		}
		r, err := opts.Run()
		if err != nil {
			return err
		}
		result.Binding, result.ExtraSubjects = action(r.Operation, r.Protected), len(r.ExtraSubjects)
		return nil
	})
	if err != nil {
		return result, fmt.Errorf("clusterrolebinding %s: %w", binding.Name, err)
	}
	return result, nil
}

// objects are the manifests with the user put in.
func objects(user string) (*rbacv1.ClusterRole, *rbacv1.ClusterRoleBinding, error) {
	var role rbacv1.ClusterRole
	if err := decode("manifests/clusterrole.yaml", &role); err != nil {
		return nil, nil, err
	}
	var binding rbacv1.ClusterRoleBinding
	if err := decode("manifests/clusterrolebinding.yaml", &binding); err != nil {
		return nil, nil, err
	}
	if user == "" {
		user = DefaultUser
	}
	for i := range binding.Subjects {
		binding.Subjects[i].Name = user
	}
	return &role, &binding, nil
}

func decode(name string, into any) error {
	data, err := manifests.ReadFile(name)
	if err != nil {
		return err
	}
	if err := yaml.UnmarshalStrict(data, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// retry runs f again while it loses against others. Upstream's reconciliation deals
// with objects that come and go while it runs and leaves conflicts to its caller;
// "service unavailable" is what the apiserver says during a storage version update.
// Spread wide, for the controllers of a cluster tend to start together.
func retry(ctx context.Context, f func() error) error {
	var last error
	backoff := wait.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 6}
	err := wait.ExponentialBackoffWithContext(ctx, backoff, func(context.Context) (bool, error) {
		last = f()
		if apierrors.IsConflict(last) || apierrors.IsAlreadyExists(last) || apierrors.IsServiceUnavailable(last) {
			return false, nil
		}
		return true, last
	})
	if last != nil {
		return last
	}
	return err
}

// A Config is what the seed needs.
type Config struct {
	// User is who gets the rights: the common name of the certificate that the
	// apiserver shows to kubelets (--kubelet-client-certificate). Empty means
	// DefaultUser.
	User string

	// Client yields a client that may create and change cluster roles with these
	// rights, that is, a cluster admin's. It is called for each attempt, after
	// Run was, and may fail but not block. Required.
	Client func() (rbacv1client.RbacV1Interface, error)

	// Log gets the result, and the reason of waiting when it changes. Nil means
	// none.
	Log *slog.Logger
}

// Limits of an attempt and of the pause after a failed one.
const (
	attemptTimeout = 10 * time.Second
	firstPause     = 200 * time.Millisecond // doubles, and varies by half
	longestPause   = 5 * time.Second
)

// A Seed applies the manifests once and then stays. Make one with New.
type Seed struct {
	cfg        Config
	firstPause time.Duration // tests shorten it

	mu        sync.Mutex // of what Collector shows
	appliedAt time.Time
	failures  uint64
	result    Result
}

// New makes a seed. It does no I/O.
func New(cfg Config) *Seed {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Seed{cfg: cfg, firstPause: firstPause}
}

// Name is "rbac-seed".
func (s *Seed) Name() string { return "rbac-seed" }

// Run applies the seed, calls ready, and blocks until ctx is done; then it returns
// nil, whether or not it got that far. An apiserver that cannot be reached or that
// refuses is tried again, with pauses of up to 5s: it is never a reason to fail.
func (s *Seed) Run(ctx context.Context, ready func()) error {
	if s.cfg.Client == nil {
		return errors.New("no client")
	}
	if s.apply(ctx) {
		ready()
		<-ctx.Done()
	}
	return nil
}

// apply tries until it has succeeded; false means that ctx is done.
func (s *Seed) apply(ctx context.Context) bool {
	var told string
	for pause := s.firstPause; ; pause = min(2*pause, longestPause) {
		result, err := s.attempt(ctx)
		s.note(result, err)
		if err == nil {
			s.report(result)
			return true
		}
		if why := root(err); ctx.Err() == nil && why != told {
			told = why
			s.cfg.Log.Warn("rbac seed not applied yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// attempt is one try, bounded.
func (s *Seed) attempt(ctx context.Context) (Result, error) {
	client, err := s.cfg.Client()
	if err != nil {
		return Result{}, fmt.Errorf("client: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return Apply(ctx, client, s.cfg.User)
}

// report logs the result, and apart from it what an operator should look at.
func (s *Seed) report(r Result) {
	s.cfg.Log.Info("rbac seed applied", "clusterrole", string(r.Role), "clusterrolebinding", string(r.Binding))
	if r.Role == LeftAlone || r.Binding == LeftAlone {
		s.cfg.Log.Warn("rbac seed differs and is left alone, as its autoupdate annotation asks")
	}
	if r.ExtraRules > 0 || r.ExtraSubjects > 0 {
		s.cfg.Log.Warn("rbac seed has been extended", "rules", r.ExtraRules, "subjects", r.ExtraSubjects)
	}
}

// root is the innermost error's text. It is the same for the same trouble, while the
// whole text of an i/o error has the port of the moment in it.
func root(err error) string {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return err.Error()
}
