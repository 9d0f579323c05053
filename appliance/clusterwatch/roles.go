package clusterwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
	"kthwd/rbacseed"
)

const (
	kindRestored = "bootstrap_restored"

	restoreSettle = 100 * time.Millisecond // several objects often change together
	restoreLeast  = time.Second            // between two restorations; doubles with each further one of the same object
	restoreMost   = 30 * time.Second
	followPause   = 2 * time.Second

	restoredShown = 15 * time.Minute // after the last restoration
	restoredOften = 3                // from here on something works against kthwd
	restoredNames = 3                // named in one finding
)

// source selects objects whose changes lead to a restoration.
type source struct {
	resource schema.GroupVersionResource
	options  metav1.ListOptions
}

// upstream labels its roles and bindings so
// (kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy/policy.go:addDefaultMetadata).
var bootstrapLabel = metav1.ListOptions{LabelSelector: "kubernetes.io/bootstrapping=rbac-defaults"}

var sources = []source{
	{rbacv1.SchemeGroupVersion.WithResource("clusterroles"), bootstrapLabel},
	{rbacv1.SchemeGroupVersion.WithResource("clusterrolebindings"), bootstrapLabel},
	{rbacv1.SchemeGroupVersion.WithResource("roles"), bootstrapLabel},
	{rbacv1.SchemeGroupVersion.WithResource("rolebindings"), bootstrapLabel},
	// the guide's binding has no label
	{rbacv1.SchemeGroupVersion.WithResource("clusterrolebindings"), metav1.ListOptions{FieldSelector: "metadata.name=" + rbacseed.BindingName}},
	{schedulingv1.SchemeGroupVersion.WithResource("priorityclasses"), metav1.ListOptions{}}, // few, and they hardly change
	{schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}, metav1.ListOptions{LabelSelector: ownAPIServices}},
}

// ownAPIServices selects the APIServices that an API server makes for its own groups
// (kube-aggregator/pkg/controllers/autoregister/autoregister_controller.go:manageOnStart).
const ownAPIServices = "kube-aggregator.kubernetes.io/automanaged=onstart"

// roles makes bootstrap objects again as soon as they are deleted or changed.
type roles struct {
	restore  []Restorer
	auditLog string
	event    func(reason, text string)
	log      *slog.Logger
	restored *prometheus.CounterVec

	mu   sync.Mutex
	past map[string]*restoration // by object
}

// restoration is what has happened to one object.
type restoration struct {
	action      rbacseed.Action // the last one
	times       int
	first, last time.Time
}

func newRoles(cfg Config) *roles {
	r := &roles{
		restore: cfg.Restore, auditLog: cfg.AuditLog, event: cfg.Event, log: cfg.Log, past: map[string]*restoration{},
		restored: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kthwd_bootstrap_restored_total", Help: "Objects of the start (bootstrap roles and bindings, system priority classes, APIServices of the API server's own groups) that were deleted or changed while kthwd ran, and were made again.",
		}, []string{"action"}),
	}
	for _, a := range []rbacseed.Action{rbacseed.Created, rbacseed.Updated, rbacseed.Recreated} {
		r.restored.WithLabelValues(string(a))
	}
	return r
}

// run restores after each change until ctx ends.
func (r *roles) run(ctx context.Context, config *rest.Config, client kubernetes.Interface) {
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		r.log.Error("bootstrap objects are not watched", "err", err)
		return
	}
	dirty := make(chan struct{}, 1)
	for _, s := range sources {
		go s.follow(ctx, objects, dirty)
	}
	failing := ""
	for ctx.Err() == nil {
		select {
		case <-dirty:
		case <-ctx.Done():
			return
		}
		supervise.Sleep(ctx, restoreSettle)
		times, err := r.all(ctx, client)
		if err != nil {
			mark(dirty)
			if why := err.Error(); why != failing && ctx.Err() == nil {
				failing = why
				r.log.Warn("bootstrap objects cannot be checked, trying again", "err", err)
			}
		} else {
			failing = ""
		}
		supervise.Sleep(ctx, pauseAfter(times))
	}
}

// pauseAfter returns the pause after an object was restored so many times.
func pauseAfter(times int) time.Duration {
	return min(restoreLeast<<min(max(times-1, 0), 8), restoreMost)
}

// all calls every restorer and says what was written. It returns how often the object that
// needs it most has been restored.
func (r *roles) all(ctx context.Context, client kubernetes.Interface) (times int, err error) {
	for _, restore := range r.restore {
		changes, failed := restore(ctx, client)
		err = errors.Join(err, failed)
		for _, c := range changes {
			times = max(times, r.say(c, time.Now()))
		}
	}
	return times, err
}

// say records a change in the log, in an Event, in the metric and for findings. It returns
// how often the object has been restored lately.
func (r *roles) say(c rbacseed.Change, now time.Time) int {
	said := c.Object + " " + done[c.Action]
	r.log.Warn("bootstrap object restored", "object", c.Object, "action", string(c.Action))
	r.event("BootstrapObjectRestored", said)
	r.restored.WithLabelValues(string(c.Action)).Inc()
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.past[c.Object]
	if p == nil || now.Sub(p.last) > restoredShown {
		p = &restoration{first: now}
		r.past[c.Object] = p
	}
	p.action, p.last = c.Action, now
	p.times++
	return p.times
}

// done says what had happened to an object, by what was done about it.
var done = map[rbacseed.Action]string{
	rbacseed.Created:   "was deleted, and was made again",
	rbacseed.Updated:   "had lost something, and has it again",
	rbacseed.Recreated: "pointed to another role, and was made again",
}

// findings has at most one finding, for some time after the last restoration.
func (r *roles) findings(now time.Time) []status.Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	var objects []string
	f, times := status.Finding{Health: status.Healthy, Kind: kindRestored, Since: now}, 0
	for object, p := range r.past {
		if now.Sub(p.last) > restoredShown {
			delete(r.past, object)
			continue
		}
		objects = append(objects, object)
		times = max(times, p.times)
		if p.first.Before(f.Since) {
			f.Since = p.first
		}
	}
	if len(objects) == 0 {
		return nil
	}
	slices.Sort(objects)
	f.Text = objects[0] + " " + done[r.past[objects[0]].action]
	if len(objects) > 1 {
		f.Text = some(objects) + " were deleted or changed, and were made again"
	}
	if times >= restoredOften {
		f.Health = status.Degraded
		f.Text += fmt.Sprintf(", %d times so far: something works against it", times)
	}
	if r.auditLog != "" { // verb and name stand in this order in a line of it
		f.Do = fmt.Sprintf(`grep -E '"verb":"((delete|update|patch)".*"name":"%s"|deletecollection".*"resource":"%s")' %s`,
			nameOf(objects[0]), resourceOf(objects[0]), text.ShellWord(r.auditLog))
	}
	return []status.Finding{f}
}

// nameOf returns the name of an object without its kind and namespace.
func nameOf(object string) string { return object[strings.LastIndexAny(object, " /")+1:] }

// resourceOf returns the resource of an object, as the audit log has it: the kind in the plural.
func resourceOf(object string) string {
	kind, _, _ := strings.Cut(object, " ")
	if strings.HasSuffix(kind, "s") {
		return kind + "es"
	}
	return kind + "s"
}

// some names the first few of all.
func some(all []string) string {
	if len(all) <= restoredNames {
		return strings.Join(all[:len(all)-1], ", ") + " and " + all[len(all)-1]
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:restoredNames], ", "), len(all)-restoredNames)
}

// follow marks dirty at its start and at each change, until ctx ends. It keeps nothing of
// the objects.
func (s source) follow(ctx context.Context, client metadata.Interface, dirty chan<- struct{}) {
	for ctx.Err() == nil {
		_ = s.followOnce(ctx, client, dirty) // the next attempt covers what was missed
		supervise.Sleep(ctx, followPause)
	}
}

func (s source) followOnce(ctx context.Context, client metadata.Interface, dirty chan<- struct{}) error {
	options := s.options
	options.ResourceVersion = "0" // from the server's cache
	list, err := client.Resource(s.resource).List(ctx, options)
	if err != nil {
		return err
	}
	mark(dirty)
	options.ResourceVersion, options.AllowWatchBookmarks = list.ResourceVersion, true
	w, err := client.Resource(s.resource).Watch(ctx, options)
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		switch e.Type {
		case watch.Bookmark:
		case watch.Error:
			return fmt.Errorf("%v", e.Object)
		default:
			mark(dirty)
		}
	}
	return nil
}

func mark(dirty chan<- struct{}) {
	select {
	case dirty <- struct{}{}:
	default:
	}
}
