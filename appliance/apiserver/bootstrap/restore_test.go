package bootstrap

import (
	"maps"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// What was seen and is gone is made again as it was last seen, but for one that was made to
// point elsewhere: that is made as it was before.
func TestOwnAPIServicesSee(t *testing.T) {
	service := func(name string, priority int32, elsewhere bool) apiregistrationv1.APIService {
		a := apiregistrationv1.APIService{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u", ResourceVersion: "1", Labels: map[string]string{"kube-aggregator.kubernetes.io/automanaged": "onstart"}},
			Spec:       apiregistrationv1.APIServiceSpec{Version: "v1", VersionPriority: priority},
		}
		if elsewhere {
			a.Spec.Service = &apiregistrationv1.ServiceReference{Namespace: "default", Name: "nobody"}
		}
		return a
	}
	var s OwnAPIServices
	for n, step := range []struct {
		all  []apiregistrationv1.APIService
		gone []string
	}{
		{[]apiregistrationv1.APIService{service("v1.apps", 15, false), service("v1.batch", 15, false)}, nil},
		{[]apiregistrationv1.APIService{service("v1.batch", 20, false)}, []string{"v1.apps"}},
		{[]apiregistrationv1.APIService{service("v1.apps", 15, true), service("v1.batch", 20, false)}, nil},
		{nil, []string{"v1.apps", "v1.batch"}},
	} {
		gone := s.see(step.all)
		if got := slices.Sorted(maps.Keys(gone)); !slices.Equal(got, step.gone) {
			t.Errorf("step %d: gone: got %q, want %q", n, got, step.gone)
		}
		for name, a := range gone {
			if a.UID != "" || a.ResourceVersion != "" || a.Kind != "APIService" || a.Labels["kube-aggregator.kubernetes.io/automanaged"] != "onstart" || a.Spec.Service != nil {
				t.Errorf("step %d: %s: got %+v", n, name, a)
			}
		}
	}
	if a := s.known["v1.batch"]; a.Spec.VersionPriority != 20 {
		t.Errorf("got %+v, want it as last seen", a)
	}
}
