package drift

import (
	"strings"
	"testing"

	"kthwd/test/etcdtest"
)

// Another controller of a new cluster writes its first objects between the two looks: that is no
// cluster elsewhere. One below another prefix is, at the same revision.
func TestRefuseEmpty(t *testing.T) {
	client := etcdtest.Client(t, etcdtest.Start(t, false))
	put := func(key string) int64 {
		t.Helper()
		answer, err := client.Put(t.Context(), key, "")
		if err != nil {
			t.Fatal(err)
		}
		return answer.Header.Revision
	}
	d := &Drift{Prefix: "/registry"}
	empty := put("/kthwd/settings")
	put("/registry/ranges/servicenodeports")
	if err := d.refuseEmpty(t.Context(), client, "/registry/", empty); err != nil {
		t.Errorf("beside a controller that has just begun: %v", err)
	}
	now := put("/other/namespaces/default")
	if err := d.refuseEmpty(t.Context(), client, "/third/", now); err == nil || !strings.Contains(err.Error(), "but a cluster elsewhere") {
		t.Errorf("below another prefix: got %v", err)
	}
}
