package clusterwatch

import (
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The range of Services is said to hang only once it is being deleted for a while: one that goes
// at once is made again by the API server.
func TestRangeThatEnds(t *testing.T) {
	now := time.Date(2026, 1, 2, 2, 9, 0, 0, time.UTC)
	s := &services{cfg: Config{Kubeconfig: "/d/admin.kubeconfig"}}
	for _, tt := range []struct {
		name    string
		deleted time.Duration // ago; 0 for one that is not
		want    int
	}{{"there", 0, 0}, {"just deleted", settled / 2, 0}, {"hangs", 2 * settled, 1}} {
		r := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: defaultServiceCIDR}}
		if tt.deleted > 0 {
			r.DeletionTimestamp = new(metav1.NewTime(now.Add(-tt.deleted)))
		}
		got := s.ending(r, now)
		if len(got) != tt.want {
			t.Errorf("%s: got %+v", tt.name, got)
		}
		if len(got) > 0 && (!got[0].Since.Equal(r.DeletionTimestamp.Time) || got[0].Do != `kubectl --kubeconfig /d/admin.kubeconfig patch servicecidr kubernetes --type=merge --patch='{"metadata":{"finalizers":null}}'`) {
			t.Errorf("%s: got %+v", tt.name, got[0])
		}
	}
	if got := s.ending(nil, now); len(got) > 0 {
		t.Errorf("none: got %+v", got)
	}
}
