package etcdfiles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"kthwd/appliance/datadir"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/test/harness"
)

var rememberedHere = Record{Cluster: "c1", Member: "a1", Members: 3, Kthwd: "v0.2.0", Kubernetes: "v1.36.3", Etcd: "3.6.16"}

// remembers makes a data directory with a record and, unless node is 0, a real
// write-ahead log.
func remembers(t *testing.T, r Record, cluster, node uint64) pki.Layout {
	t.Helper()
	l := pki.Layout{Dir: t.TempDir()}
	if err := r.Write(l); err != nil {
		t.Fatal(err)
	}
	if node != 0 {
		makeLog(t, filepath.Join(l.Etcd(), "member", "wal"), cluster, node)
	}
	return l
}

func makeLog(t *testing.T, dir string, cluster, node uint64) {
	t.Helper()
	metadata, err := proto.Marshal(&etcdserverpb.Metadata{ClusterID: &cluster, NodeID: &node})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	w, err := wal.Create(zap.NewNop(), dir, metadata)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
}

func TestGuardVersions(t *testing.T) {
	for _, tt := range []struct {
		name                    string
		kthwd, kubernetes, etcd string
		want, hint              string
	}{
		{"the same", "v0.2.0", "v1.36.3", "3.6.16", "", ""},
		{"newer patches", "v0.2.7", "v1.36.9", "3.6.20", "", ""},
		{"older patches", "v0.2.0", "v1.36.0", "3.6.1", "", ""},
		{"the next minors", "v0.3.0", "v1.37.0", "3.7.1", "", ""},
		{"kthwd may skip", "v0.9.0", "v1.36.3", "3.6.16", "", ""},
		{"kthwd 1.0", "v1.0.0", "v1.36.3", "3.6.16", "", ""},
		{"an older kthwd", "v0.1.9", "v1.36.3", "3.6.16", "last run with kthwd v0.2.0, and this kthwd has v0.1.9", "run kthwd v0.2.0 again"},
		{"an older Kubernetes", "v0.2.0", "v1.35.9", "3.6.16", "Kubernetes v1.36.3, and this kthwd has v1.35.9: there is no way back", "run kthwd v0.2.0 again"},
		{"an older etcd", "v0.2.0", "v1.36.3", "3.5.30", "etcd 3.6.16, and this kthwd has 3.5.30: there is no way back", "member.json away"},
		{"Kubernetes skips", "v0.3.0", "v1.38.0", "3.6.16", "Kubernetes v1.36.3, and this kthwd has v1.38.0: a minor must not be skipped", "Kubernetes 1.37 first"},
		{"etcd skips", "v0.3.0", "v1.36.3", "3.8.0", "etcd 3.6.16, and this kthwd has 3.8.0: a minor must not be skipped", "etcd 3.7 first"},
		{"a build between releases", "v0.1.0-5-g0123456", "v1.36.3", "3.6.16", "", ""},
		{"a changed build", "v0.1.0-dirty", "v1.36.3", "3.6.16", "", ""},
		{"a build without a version", "unknown", "v1.36.3", "3.6.16", "", ""},
		{"such a build with an older etcd", "v0.1.0-dev", "v1.36.3", "3.5.30", "etcd 3.6.16", "run kthwd v0.2.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := remembers(t, rememberedHere, 0xc1, 0xa1)
			err := Guard(l, nil, Record{Kthwd: tt.kthwd, Kubernetes: tt.kubernetes, Etcd: tt.etcd})
			harness.CheckRefusal(t, err, tt.want, tt.hint)
		})
	}
	t.Run("all that is wrong is said", func(t *testing.T) {
		l := remembers(t, rememberedHere, 0xc1, 0xff)
		err := Guard(l, nil, Record{Kthwd: "v0.1.0", Kubernetes: "v1.35.0", Etcd: "3.5.0"})
		for _, want := range []string{"kthwd v0.2.0", "Kubernetes v1.36.3", "etcd 3.6.16", "member ff"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("got %v\nwant %q in it", err, want)
			}
		}
	})
	t.Run("what a build between releases left", func(t *testing.T) {
		was := rememberedHere
		was.Kthwd = "v0.9.0-3-gabcdef0"
		l := remembers(t, was, 0xc1, 0xa1)
		harness.CheckRefusal(t, Guard(l, nil, rememberedHere), "", "")
	})
}

func TestGuardData(t *testing.T) {
	alone := rememberedHere
	alone.Members = 1
	for _, tt := range []struct {
		name          string
		was           Record
		cluster, node uint64
		want, hint    string
	}{
		{"its own", rememberedHere, 0xc1, 0xa1, "", ""},
		{"another cluster's", rememberedHere, 0xc2, 0xa1, "holds data of etcd cluster c2, member a1, but this controller is member a1 of cluster c1", "put back this controller's own data"},
		{"another member's", rememberedHere, 0xc1, 0xa2, "holds data of etcd cluster c1, member a2", "member.json away"},
		{"gone, of several", rememberedHere, 0, 0, "was one of 3 members", "kthwd member remove"},
		{"gone, of one", alone, 0, 0, "a start would make an empty cluster", "for an empty cluster, move"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := remembers(t, tt.was, tt.cluster, tt.node)
			harness.CheckRefusal(t, Guard(l, nil, rememberedHere), tt.want, tt.hint)
			if err := datadir.Forget(l); err != nil {
				t.Fatal(err)
			}
			harness.CheckRefusal(t, Guard(l, nil, rememberedHere), "", "") // the record is gone
			if err := datadir.Forget(l); err != nil {
				t.Errorf("nothing to forget: got %v", err)
			}
		})
	}
	t.Run("a log elsewhere", func(t *testing.T) {
		l := remembers(t, rememberedHere, 0, 0)
		elsewhere := filepath.Join(t.TempDir(), "wal")
		makeLog(t, elsewhere, 0xc1, 0xa1)
		harness.CheckRefusal(t, Guard(l, []program.Arg{{Key: "wal-dir", Value: elsewhere}}, rememberedHere), "", "")
	})
	t.Run("a log that cannot be read", func(t *testing.T) { // Check reports it, with more detail
		l := remembers(t, rememberedHere, 0xc1, 0xa1)
		names, _ := filepath.Glob(filepath.Join(l.Etcd(), "member", "wal", "*.wal"))
		if err := os.WriteFile(names[0], []byte("not a log at all, and short"), 0o600); err != nil {
			t.Fatal(err)
		}
		harness.CheckRefusal(t, Guard(l, nil, rememberedHere), "", "")
	})
}

func TestGuardRecord(t *testing.T) {
	l := pki.Layout{Dir: t.TempDir()}
	harness.CheckRefusal(t, Guard(l, nil, rememberedHere), "", "") // as in a directory that is older than records
	if err := rememberedHere.Write(l); err != nil {
		t.Fatal(err)
	}
	if err := (Record{Cluster: "c9"}).Write(l); err != nil { // replaces
		t.Fatal(err)
	}
	if r, err := ReadRecord(l); err != nil || *r != (Record{Cluster: "c9"}) {
		t.Errorf("got %+v %v, want what was written last", r, err)
	}
	if info, err := os.Stat(l.Record()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: got %v %v, want 0600", info.Mode(), err)
	}
	if left, err := os.ReadDir(l.Dir); err != nil || len(left) != 1 {
		t.Errorf("left in the directory: %v %v, want the record only", left, err)
	}
	for _, damaged := range []string{"", "{", `{"members": "three"}`} {
		if err := os.WriteFile(l.Record(), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		harness.CheckRefusal(t, Guard(l, nil, rememberedHere), l.Record(), "move it away")
	}
}
