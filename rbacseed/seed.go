// Package rbacseed grants the apiserver its rights on kubelets: the ClusterRole and the
// ClusterRoleBinding that the tutorial applies by hand with kubectl, in
// rbac.authorization.k8s.io/v1.
//
//	s := rbacseed.New(rbacseed.Config{
//		User:   "kubernetes", // the CN of --kubelet-client-certificate
//		Client: func() (rbacv1client.RbacV1Interface, error) { … },
//	})
//	err := s.Run(ctx, ready) // start it once the apiserver is ready; blocks
//
// The objects are embedded from manifests/*.yaml. They are reconciled once per start by
// the code that the apiserver uses for its own bootstrap roles,
// k8s.io/component-helpers/auth/rbac/reconciliation, with the same semantics as
// EnsureRBACPolicy in kubernetes pkg/registry/rbac/rest/storage_rbac.go:
//
//   - missing parts are restored: the objects, rules (one for each missing resource),
//     the subject, labels, annotations;
//   - additions stay: rules, subjects, labels. The Result counts extra rules and
//     subjects, and Run logs them, because they are rights. So the user of an earlier
//     start stays bound when User changes;
//   - an object annotated rbac.authorization.kubernetes.io/autoupdate: "false" is left
//     unchanged, each of the two independently;
//   - a binding with another roleRef, which cannot be changed, is deleted and recreated
//     from the manifest, without its additions.
//
// Several controllers may do this at once: the loser of a race reads again and finds the
// work done. Restore repairs later damage.
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

// The names of the two objects, as in the manifests.
const (
	BindingName = "system:kube-apiserver"
	roleName    = "system:kube-apiserver-to-kubelet"
)

// DefaultUser is the tutorial's user: the common name of kubernetes.pem.
const DefaultUser = "kubernetes"

// An Action is what Apply did to one object.
type Action string

// The actions, in the words that are logged.
const (
	Unchanged Action = "unchanged"
	Created   Action = "created"
	Updated   Action = "updated"
	Recreated Action = "recreated"  // deleted and created, because the roleRef differed
	LeftAlone Action = "left alone" // differs, but its autoupdate annotation is "false"
)

// actions translates upstream's operations.
var actions = map[reconciliation.ReconcileOperation]Action{
	reconciliation.ReconcileNone:     Unchanged,
	reconciliation.ReconcileCreate:   Created,
	reconciliation.ReconcileUpdate:   Updated,
	reconciliation.ReconcileRecreate: Recreated,
}

// Wrote reports whether the action changed the object.
func (a Action) Wrote() bool { return a == Created || a == Updated || a == Recreated }

// A Change is what was done to one object.
type Change struct {
	Object string // kind and name: clusterrole cluster-admin
	Action Action
}

// ActionOf returns the action of a reconciliation on an object, which is protected if its
// autoupdate annotation is "false".
func ActionOf(op reconciliation.ReconcileOperation, protected bool) Action {
	if protected && op != reconciliation.ReconcileNone {
		return LeftAlone
	}
	return actions[op]
}

// A Result tells what Apply did and which additions it found.
type Result struct {
	Role, Binding Action
	ExtraRules    int // rules the role has beyond the manifest's; kept
	ExtraSubjects int // subjects the binding has beyond the user; kept
}

// Apply reconciles the role and the binding with the manifests, for user (empty means
// DefaultUser). It does nothing when they match already. Conflicts and "service
// unavailable" are retried for about half a second. Every other error is returned at
// once, as client-go's error prefixed with the object; the Result then tells how far
// Apply got.
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
		result.Role, result.ExtraRules = ActionOf(r.Operation, r.Protected), len(r.ExtraRules)
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
		result.Binding, result.ExtraSubjects = ActionOf(r.Operation, r.Protected), len(r.ExtraSubjects)
		return nil
	})
	if err != nil {
		return result, fmt.Errorf("clusterrolebinding %s: %w", binding.Name, err)
	}
	return result, nil
}

// objects returns the objects of the manifests, with the user filled in.
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

// retry repeats f while it loses races. Upstream's reconciliation handles objects that
// appear and vanish while it runs, and leaves conflicts to its caller. The apiserver
// answers "service unavailable" during a storage version update. The jitter is wide,
// because the controllers of a cluster tend to start together.
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

// A Config configures a Seed.
type Config struct {
	// User gets the rights: the common name of the certificate that the apiserver
	// shows to kubelets (--kubelet-client-certificate). Empty means DefaultUser.
	User string

	// Client returns a client that may create and change cluster roles with these
	// rights, that is, a cluster admin's. Run calls it for each attempt; it may fail
	// but must not block. Required.
	Client func() (rbacv1client.RbacV1Interface, error)

	// Log gets the result, and each new reason for waiting. Nil logs nothing.
	Log *slog.Logger
}

// The limits of an attempt and of the pause after a failed one.
const (
	attemptTimeout = 10 * time.Second
	firstPause     = 200 * time.Millisecond // doubles, and varies by half
	longestPause   = 5 * time.Second
)

// A Seed applies the manifests once and then idles; Restore applies them again. Create one with New.
type Seed struct {
	cfg        Config
	firstPause time.Duration // tests shorten it

	mu        sync.Mutex // guards the fields below, for Collector
	appliedAt time.Time
	failures  uint64
	result    Result
}

// New creates a Seed. It does no I/O.
func New(cfg Config) *Seed {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Seed{cfg: cfg, firstPause: firstPause}
}

// Name implements supervise.Component.
func (s *Seed) Name() string { return "rbac-seed" }

// Run applies the seed, calls ready, and blocks until ctx is done; then it returns nil,
// whether or not the seed was applied. It never fails because of an apiserver that is
// unreachable or refuses, but retries with pauses of up to 5s.
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

// apply tries until it succeeds; it returns false when ctx is done.
func (s *Seed) apply(ctx context.Context) bool {
	var logged string
	for pause := s.firstPause; ; pause = min(2*pause, longestPause) {
		result, err := s.attempt(ctx)
		s.note(result, err)
		if err == nil {
			s.report(result)
			return true
		}
		if why := root(err); ctx.Err() == nil && why != logged {
			logged = why
			s.cfg.Log.Warn("rbac seed not applied yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// attempt applies the seed once, within attemptTimeout.
func (s *Seed) attempt(ctx context.Context) (Result, error) {
	client, err := s.cfg.Client()
	if err != nil {
		return Result{}, fmt.Errorf("client: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return Apply(ctx, client, s.cfg.User)
}

// Restore applies the seed once more, if it has been applied before, and returns what it
// has written.
func (s *Seed) Restore(ctx context.Context) ([]Change, error) {
	s.mu.Lock()
	before := s.appliedAt
	s.mu.Unlock()
	if before.IsZero() {
		return nil, nil
	}
	result, err := s.attempt(ctx)
	s.note(result, err)
	var all []Change
	for _, c := range []Change{{"clusterrole " + roleName, result.Role}, {"clusterrolebinding " + BindingName, result.Binding}} {
		if c.Action.Wrote() {
			all = append(all, c)
		}
	}
	return all, err
}

// report logs the result, and in separate lines the findings an operator should check.
func (s *Seed) report(r Result) {
	s.cfg.Log.Info("rbac seed applied", "clusterrole", string(r.Role), "clusterrolebinding", string(r.Binding))
	if r.Role == LeftAlone || r.Binding == LeftAlone {
		s.cfg.Log.Warn("rbac seed differs and is left alone, as its autoupdate annotation asks")
	}
	if r.ExtraRules > 0 || r.ExtraSubjects > 0 {
		s.cfg.Log.Warn("rbac seed has been extended", "rules", r.ExtraRules, "subjects", r.ExtraSubjects)
	}
}

// root returns the text of the innermost error. It is the same for the same fault, while
// the whole text of an i/o error contains a port that changes.
func root(err error) string {
	for next := err; next != nil; next = errors.Unwrap(next) {
		err = next
	}
	return err.Error()
}
