package etcdfiles

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// The last record of a write-ahead log may lack its end, which etcd repairs. Bytes that
// do not look like a record are damage.
func TestTornRecord(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(data []byte, last int) []byte
		bad   bool
	}{
		{"whole", func(data []byte, _ int) []byte { return data }, false},
		{"its end was never written", func(data []byte, last int) []byte { clear(data[last+600:]); return data }, false},
		{"the disk was full: the file ends in it", func(data []byte, last int) []byte { return data[:last+600] }, false},
		{"the disk was full: the file ends after its head", func(data []byte, last int) []byte { return data[:last+11] }, false},
		{"its length was written over", func(data []byte, last int) []byte {
			copy(data[last:], "\xde\xad\xbe\xef\xde\xad\xbe\x80")
			return data
		}, true},
		{"its length is of another record", func(data []byte, last int) []byte {
			binary.LittleEndian.PutUint64(data[last:], 32<<20)
			copy(data[last+8:], "no record")
			return data[:last+600]
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), `a[b-*?\]`, "wal") // a path is no pattern
			if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
				t.Fatal(err)
			}
			w, err := wal.Create(zap.NewNop(), dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			marker := bytes.Repeat([]byte(types.ID(0xc0ffee).String()), 500)
			for i := range uint64(3) {
				entry := &raftpb.Entry{Index: proto.Uint64(i + 1), Term: proto.Uint64(1), Data: marker}
				if err := w.Save(nil, []*raftpb.Entry{entry}); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			files, err := Logs(dir)
			if err != nil || len(files) != 1 {
				t.Fatalf("files of the log: %q, %v", files, err)
			}
			data, err := os.ReadFile(files[0])
			if err != nil {
				t.Fatal(err)
			}
			// The last record begins where the second one ends: eight aligned bytes before its content.
			last := bytes.LastIndex(data, marker)
			for last--; !(last%8 == 0 && data[last+8] == 1<<3 && data[last+10] == 2<<3); last-- {
			}
			if err := os.WriteFile(files[0], tt.spoil(data, last), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := checkWAL(dir); (err != nil) != tt.bad {
				t.Errorf("got %v, want an error %v", err, tt.bad)
			}
			if repaired := wal.Repair(zap.NewNop(), dir); !tt.bad && !repaired {
				t.Error("etcd does not mend it")
			}
		})
	}
}
