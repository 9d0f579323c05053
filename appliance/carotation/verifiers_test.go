package carotation

import "testing"

// The state of one rotation is not believed to be that of the other.
func TestSealsOfEach(t *testing.T) {
	l := newLayout(t)
	s, _, _ := begun(t, l)
	one, err := Cluster.authority().seals(l, s)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := FrontProxy.authority().seals(l, s); err != nil || one.Match(other) {
		t.Errorf("a state of the cluster's CA is one of the front proxy's, too: %v", err)
	}
}
