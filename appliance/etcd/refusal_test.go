package etcd

import (
	"errors"
	"strings"
	"testing"

	"kthwd/appliance/advice"
)

// A member that is older than the cluster says what to run, whenever it hears of that; another
// fatal line stays as it is.
func TestOlderThanCluster(t *testing.T) {
	fatal := errors.New("invalid downgrade; server version is lower than determined cluster version")
	w, e := &watch{}, &Member{}
	for name, err := range map[string]error{"while it runs": w.died(fatal), "at its start": e.explain(fatal)} {
		if do, _ := advice.Of(err); !strings.Contains(do, "run the kthwd of the other controllers here") || !errors.Is(err, fatal) {
			t.Errorf("%s: got %v, %q", name, err, do)
		}
	}
	other := errors.New("version \"9.9.0\" is not supported")
	if err := w.died(other); err != other {
		t.Errorf("another fatal line: got %v", err)
	}
}
