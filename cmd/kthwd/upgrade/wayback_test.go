package upgrade

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
	"kthwd/appliance/upgrade"
)

// TestWayBack names a copy of the upgrade that is finished, and of no other one.
func TestWayBack(t *testing.T) {
	l := pki.Layout{Dir: t.TempDir()}
	state := &upgrade.State{From: etcdfiles.Ran{Kubernetes: "v1.36.3", Etcd: "3.6.16"}, To: etcdfiles.Ran{Kubernetes: "v1.37.2", Etcd: "3.7.3"}}
	const archive = "restore an archive from before the upgrade"
	earlier, this := "before-upgrade-kubernetes-1.35-to-1.36-etcd-3.5-to-3.6-20260101T000000Z", "before-upgrade-kubernetes-1.36-to-1.37-etcd-3.6-to-3.7-20260201T000000Z"
	later := "before-upgrade-adoption-20260301T000000Z"
	for _, c := range []struct {
		name  string
		state *upgrade.State
		kept  string // one more copy
		want  string
	}{
		{"no copy", state, "", archive},
		{"a copy of an earlier upgrade", state, earlier, archive},
		{"a copy of this one", state, this, this},
		{"and a newer one of something else", state, later, this},
		{"nobody knows which upgrade", nil, "", archive},
	} {
		if err := os.MkdirAll(filepath.Join(l.Kept(), c.kept), 0o700); err != nil {
			t.Fatal(err)
		}
		if got := wayBack(l, c.state); !strings.Contains(got, c.want) || c.want == archive && strings.Contains(got, "before-upgrade-") {
			t.Errorf("%s: %s; want %s", c.name, got, c.want)
		}
	}
}
