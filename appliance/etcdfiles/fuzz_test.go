package etcdfiles

import (
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"kthwd/appliance/pki"
)

// FuzzLog: a file of the write-ahead log with any content is read, or refused, without a
// panic and without memory beyond the file's size.
func FuzzLog(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "wal")
	w, err := wal.Create(zap.NewNop(), dir, []byte("metadata"))
	if err != nil {
		f.Fatal(err)
	}
	if err := w.Save(nil, []*raftpb.Entry{{Index: proto.Uint64(1), Term: proto.Uint64(1), Data: []byte("x")}}); err != nil {
		f.Fatal(err)
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	files, err := Logs(dir)
	if err != nil || len(files) != 1 {
		f.Fatalf("%q, %v", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[:1024])
	f.Add(data[:100])
	f.Add([]byte{})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 2, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(files[0], data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = ReadIDs(dir)
		_ = checkWAL(dir)
	})
}

// FuzzRecord: a member record of any content is read or refused.
func FuzzRecord(f *testing.F) {
	for _, s := range []string{"", "{}", "null", `{"cluster":"a","member":"b","members":3,"kthwd":"v0.1.0","kubernetes":"v1.36.3","etcd":"3.6.16"}`, `{"kubernetes":"v999999999999999999999.1"}`, `{"etcd":"3"}`, `{"members":-1}`} {
		f.Add([]byte(s))
	}
	l := pki.Layout{Dir: f.TempDir()}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(l.Record(), data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := ReadRecord(l)
		if err != nil {
			if r != nil {
				t.Errorf("%+v together with %v", r, err)
			}
			return
		}
		_ = r.Follows(Versions("v0.1.0"), l.Dir, "")
	})
}
