package bootstrap

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/controllers/autoregister"
	internalscheduling "k8s.io/kubernetes/pkg/apis/scheduling/v1"

	"kthwd/rbacseed"
)

// Upstream makes three kinds of objects at its start and never again: the bootstrap policy
// (bootstrap.go), the system priority classes and the APIServices of its own groups. All
// others have a controller that makes them again; docs/tutorial-differences.md lists both.

func bootstrapPriorityClasses(ctx context.Context, client kubernetes.Interface) error {
	_, err := RestorePriorityClasses(ctx, client)
	return err
}

// RestorePriorityClasses makes upstream's system priority classes where they are missing. It
// returns what it has written, also beside an error. The API refuses a request to delete one
// of them by name, but not one to delete all priority classes
// (kubernetes/pkg/registry/scheduling/priorityclass/storage/storage.go has no DeleteCollection).
func RestorePriorityClasses(ctx context.Context, client kubernetes.Interface) (changes []rbacseed.Change, err error) {
	classes := client.SchedulingV1().PriorityClasses()
	for _, class := range internalscheduling.SystemPriorityClasses() {
		_, err := classes.Get(ctx, class.Name, metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			if err != nil {
				return changes, err
			}
			continue
		}
		switch _, err := classes.Create(ctx, class, metav1.CreateOptions{}); {
		case err == nil:
			changes = append(changes, rbacseed.Change{Object: "priorityclass " + class.Name, Action: rbacseed.Created})
		case apierrors.IsNotFound(err): // --runtime-config has this API switched off; upstream leaves its hook out then
			return changes, nil
		case !apierrors.IsAlreadyExists(err): // another controller was faster
			return changes, err
		}
	}
	return changes, nil
}

const (
	apiServicesPath = "/apis/apiregistration.k8s.io/v1/apiservices"

	// ownAPIServices selects those of the API server's own groups, as long as nobody has
	// taken them over by removing the label. clusterwatch watches the same ones.
	ownAPIServices = autoregister.AutoRegisterManagedLabel + "=onstart"
)

// OwnAPIServices makes the APIServices of the API server's own groups again, which upstream
// makes once (kube-aggregator/pkg/controllers/autoregister/autoregister_controller.go, row 2B
// of its table). Without one, discovery lacks the group: kubectl finds none of its objects.
// The zero value is ready; it is for one goroutine.
//
// An APIService that was changed is left as it is, and so is one without the label.
type OwnAPIServices struct {
	known map[string]apiregistrationv1.APIService // as last seen
}

// Restore makes those that it has seen in an earlier call and that are gone. Call it first
// when the API server is ready: /readyz waits for all of them. It returns what it has
// written, also beside an error.
//
// While controllers of two versions run, the newer one deletes, once, what it no longer
// serves; an older one makes it again. It goes when the last one starts with the newer version.
func (s *OwnAPIServices) Restore(ctx context.Context, client kubernetes.Interface) (changes []rbacseed.Change, err error) {
	api := client.Discovery().RESTClient()
	var list apiregistrationv1.APIServiceList // not from the server's cache: what was just made is in it
	data, err := api.Get().AbsPath(apiServicesPath).Param("labelSelector", ownAPIServices).SetHeader("Accept", "application/json").DoRaw(ctx)
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("list APIServices: %w", err)
	}
	gone := s.see(list.Items)
	for _, name := range slices.Sorted(maps.Keys(gone)) {
		body, err := json.Marshal(gone[name])
		if err != nil {
			return changes, err
		}
		_, err = api.Post().AbsPath(apiServicesPath).SetHeader("Content-Type", "application/json").Body(body).DoRaw(ctx)
		switch {
		case err == nil:
			changes = append(changes, rbacseed.Change{Object: "apiservice " + name, Action: rbacseed.Created})
		case apierrors.IsAlreadyExists(err): // made by another controller, or taken over
			delete(s.known, name)
		default:
			return changes, fmt.Errorf("make APIService %s again: %w", name, err)
		}
	}
	return changes, nil
}

// see remembers the APIServices, and returns those that it knows and that are not among them.
func (s *OwnAPIServices) see(all []apiregistrationv1.APIService) (gone map[string]apiregistrationv1.APIService) {
	if s.known == nil {
		s.known = map[string]apiregistrationv1.APIService{}
	}
	gone = maps.Clone(s.known)
	for _, a := range all {
		delete(gone, a.Name)
		if a.Spec.Service == nil { // else it was made to point elsewhere
			s.known[a.Name] = apiregistrationv1.APIService{
				TypeMeta:   metav1.TypeMeta{APIVersion: apiregistrationv1.SchemeGroupVersion.String(), Kind: "APIService"},
				ObjectMeta: metav1.ObjectMeta{Name: a.Name, Labels: a.Labels},
				Spec:       a.Spec,
			}
		}
	}
	return gone
}
