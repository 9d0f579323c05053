package etcd

import (
	"errors"
	"strings"
	"testing"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcd/embedded"
)

// A member that is older than the cluster, and one with data from before, say what to do, whenever
// they hear of it; another fatal line stays as it is.
func TestOlderThanCluster(t *testing.T) {
	w := &watch{}
	for _, tt := range []struct{ fatal, do string }{
		{"invalid downgrade; server version is lower than determined cluster version", "run the kthwd of the other controllers here"},
		{"tocommit(869) is out of range [lastIndex(653)]. Was the raft log corrupted, truncated, or lost?", "kthwd join --replace-data here"},
	} {
		fatal := errors.New(tt.fatal)
		for name, err := range map[string]error{"while it runs": w.died(fatal), "at its start": embedded.Explain("", fatal)} {
			if do, _ := advice.Of(err); !strings.Contains(do, tt.do) || !errors.Is(err, fatal) {
				t.Errorf("%s: got %v, %q", name, err, do)
			}
		}
	}
	other := errors.New("version \"9.9.0\" is not supported")
	if err := w.died(other); err != other {
		t.Errorf("another fatal line: got %v", err)
	}
}
