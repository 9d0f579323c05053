package clusterwatch

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/cause"
	"kthwd/appliance/status"
)

const (
	settled   = 10 * time.Second // a server that is replaced is away for a moment
	stuckLong = 5 * time.Minute  // a namespace in Terminating without an error

	messageLong = 300 // bytes of a message of the API that are shown
	findingsMax = 5   // of one kind

	kindAPIService = cause.APIService
	kindNamespace  = "namespace_stuck"
	kindServices   = "service_range_deleted"
)

// defaultServiceCIDR is the name of the range of --service-cluster-ip-range
// (kubernetes/pkg/controlplane/controller/defaultservicecidr).
const defaultServiceCIDR = "kubernetes"

// services looks for APIServices that are not available, and for namespaces that cannot
// be deleted.
type services struct {
	cfg Config

	mu  sync.Mutex
	all []status.Finding // of the last look that succeeded
}

// apiServices is the part of an APIServiceList that is read.
type apiServices struct {
	Items []struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     struct {
			Service *struct{ Namespace, Name string } `json:"service"`
		} `json:"spec"`
		Status struct {
			Conditions []struct {
				Type, Status, Message string
				LastTransitionTime    metav1.Time
			} `json:"conditions"`
		} `json:"status"`
	} `json:"items"`
}

// look makes three small requests, all answered from the server's cache.
func (s *services) look(ctx context.Context, client kubernetes.Interface, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	data, err := client.Discovery().RESTClient().Get().AbsPath("/apis/apiregistration.k8s.io/v1/apiservices").
		Param("resourceVersion", "0").SetHeader("Accept", "application/json").DoRaw(ctx)
	var list apiServices
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		s.cfg.Log.Debug("APIServices not listed", "err", err)
		return
	}
	terminating, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{ResourceVersion: "0", FieldSelector: "status.phase=Terminating"})
	if err != nil {
		s.cfg.Log.Debug("namespaces not listed", "err", err)
		return
	}
	addresses, err := client.NetworkingV1().ServiceCIDRs().Get(ctx, defaultServiceCIDR, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil && !apierrors.IsNotFound(err) { // upstream makes one that is missing
		s.cfg.Log.Debug("the range of Services not read", "err", err)
		return
	}
	broken, remedy := s.broken(list, now)
	all := append(capped(broken), capped(s.stuck(terminating.Items, remedy, now))...)
	all = append(all, s.ending(addresses, now)...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = all
}

// broken returns a finding for each APIService that is not available, and the remedy of
// the first.
func (s *services) broken(list apiServices, now time.Time) (all []status.Finding, remedy string) {
	for _, item := range list.Items {
		for _, c := range item.Status.Conditions {
			if c.Type != "Available" || c.Status != "False" || now.Sub(c.LastTransitionTime.Time) < settled {
				continue
			}
			at := ""
			if service := item.Spec.Service; service != nil {
				at = fmt.Sprintf(" (service %s/%s)", service.Namespace, service.Name)
			}
			all = append(all, status.Finding{
				Health: status.Degraded, Kind: kindAPIService, Since: c.LastTransitionTime.Time,
				Text: fmt.Sprintf("APIService %s%s is not available, so no namespace can be deleted: %s", item.Metadata.Name, at, short(c.Message)),
				Do:   s.cfg.kubectl("delete apiservice", item.Metadata.Name),
			})
		}
	}
	if len(all) > 0 {
		remedy = all[0].Do
	}
	return all, remedy
}

// hindrances are the conditions of a namespace that say why it is not deleted, the clearest
// first (kubernetes/pkg/controller/namespace/deletion/status_condition_utils.go).
var hindrances = []struct {
	condition corev1.NamespaceConditionType
	after     time.Duration
}{
	{corev1.NamespaceDeletionDiscoveryFailure, settled},
	{corev1.NamespaceDeletionGVParsingFailure, settled},
	{corev1.NamespaceDeletionContentFailure, settled},
	{corev1.NamespaceFinalizersRemaining, stuckLong},
	{corev1.NamespaceContentRemaining, stuckLong},
}

func (s *services) stuck(terminating []corev1.Namespace, remedy string, now time.Time) (all []status.Finding) {
	for _, ns := range terminating {
		if ns.DeletionTimestamp == nil {
			continue
		}
		why, ok := hindrance(ns, now)
		if !ok {
			continue
		}
		do := s.cfg.kubectl("get namespace", ns.Name, "-o jsonpath={.status.conditions}")
		if why.Type == corev1.NamespaceDeletionDiscoveryFailure && remedy != "" {
			do = remedy
		}
		all = append(all, status.Finding{
			Health: status.Degraded, Kind: kindNamespace, Since: ns.DeletionTimestamp.Time, Do: do,
			Text: fmt.Sprintf("namespace %s hangs in Terminating: %s", ns.Name, short(why.Message)),
		})
	}
	return all
}

// ending has a finding while the range of Services is being deleted. It cannot be: the Service
// kubernetes keeps an address of it, and until then no other Service gets one. Without its
// finalizer it goes at once, and the API server makes it again
// (kubernetes/pkg/controller/servicecidrs/servicecidrs_controller.go).
func (s *services) ending(r *networkingv1.ServiceCIDR, now time.Time) []status.Finding {
	if r == nil || r.DeletionTimestamp == nil || now.Sub(r.DeletionTimestamp.Time) < settled {
		return nil
	}
	return []status.Finding{{
		Health: status.Degraded, Kind: kindServices, Since: r.DeletionTimestamp.Time,
		Text: fmt.Sprintf("ServiceCIDR %s, the range of Services, hangs in its deletion: no new Service gets an address", r.Name),
		Do:   s.cfg.kubectl("patch servicecidr", r.Name, `--type=merge --patch='{"metadata":{"finalizers":null}}'`),
	}}
}

func hindrance(ns corev1.Namespace, now time.Time) (corev1.NamespaceCondition, bool) {
	for _, h := range hindrances {
		for _, c := range ns.Status.Conditions {
			if c.Type == h.condition && c.Status == corev1.ConditionTrue && now.Sub(ns.DeletionTimestamp.Time) >= h.after {
				return c, true
			}
		}
	}
	return corev1.NamespaceCondition{}, false
}

func (s *services) findings() []status.Finding {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

// capped returns the oldest findings; the last says how many more there are.
func capped(all []status.Finding) []status.Finding {
	slices.SortStableFunc(all, func(a, b status.Finding) int { return a.Since.Compare(b.Since) })
	if len(all) > findingsMax {
		all[findingsMax-1].Text += fmt.Sprintf("; and %d more", len(all)-findingsMax)
		all = all[:findingsMax]
	}
	return all
}

// short cuts a message, at the end of a character.
func short(message string) string {
	if len(message) > messageLong {
		message = strings.ToValidUTF8(message[:messageLong], "") + " ..."
	}
	return message
}
