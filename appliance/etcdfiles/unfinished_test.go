package etcdfiles

import (
	"strings"
	"testing"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
)

// An older kthwd reads Kthwd, Kubernetes and Etcd only, and refuses data of newer minors.
func TestEmulatingRecord(t *testing.T) {
	old := Record{Cluster: "c1", Member: "a1", Members: 1, Kthwd: "v0.2.0", Kubernetes: "v1.36.3", Etcd: "3.6.16"}
	is := Record{Kthwd: "v0.3.0", Kubernetes: "v1.37.2", Etcd: "3.7.3"}
	if got := old.Emulates(is); got != "1.36" {
		t.Errorf("the first start emulates %q, want 1.36", got)
	}
	if got := old.Emulates(Record{Kubernetes: "v1.36.9"}); got != "" {
		t.Errorf("a newer patch emulates %q", got)
	}
	if got := (*Record)(nil).Emulates(is); got != "" {
		t.Errorf("without a record: emulates %q", got)
	}
	base, upgrades := old.Base(is)
	if want := (Ran{"v0.2.0", "v1.36.3", "3.6.16"}); base != want || !upgrades {
		t.Errorf("base: got %v %v, want %v", base, upgrades, want)
	}
	mixed := old
	mixed.Etcd = "3.6.0" // of its storage
	mixed = mixed.Emulating(base, is)
	if err := mixed.Follows(old, "here", "back"); err != nil {
		t.Errorf("the old kthwd on its own etcd's format: %v", err)
	}
	raised := old
	raised.Etcd = is.Etcd
	raised = raised.Emulating(base, is)
	err := raised.Follows(old, "here", "back")
	if err == nil || strings.Contains(err.Error(), "Kubernetes") || !strings.Contains(err.Error(), "etcd 3.7.3") {
		t.Errorf("the old kthwd on the new format of etcd: %v", err)
	}
	if do, _ := advice.Of(err); !strings.Contains(do, "run kthwd v0.3.0 again") {
		t.Errorf("advice of the old kthwd: %q", do)
	}
	for _, r := range []Record{mixed, raised} {
		if err := r.Follows(is, "here", "back"); err != nil {
			t.Errorf("the new kthwd again: %v", err)
		}
		if u := r.Upgrade(is); u != nil {
			t.Errorf("the second start is an upgrade: %v", u)
		}
		if got := r.Emulates(is); got != "1.36" || !r.Unfinished() {
			t.Errorf("the second start emulates %q", got)
		}
		if again, _ := r.Base(is); again != base {
			t.Errorf("the second start's base: %v", again)
		}
		err := r.Follows(Record{Kthwd: "v0.4.0", Kubernetes: "v1.38.0", Etcd: "3.7.9"}, "here", "back")
		if err == nil || !strings.Contains(err.Error(), "in the middle of the upgrade from Kubernetes 1.36 to 1.37") {
			t.Errorf("the minor after it: %v", err)
		}
		l := pki.Layout{Dir: t.TempDir()}
		if err := r.Write(l); err != nil {
			t.Fatal(err)
		}
		if read, err := ReadRecord(l); err != nil || *read != r {
			t.Errorf("read: %v %v, want %v", read, err, r)
		}
	}
	if u := old.Upgrade(is); u == nil || u.String() != "Kubernetes 1.36 to 1.37, etcd 3.6 to 3.7" {
		t.Errorf("the first start: %v", u)
	}
}
