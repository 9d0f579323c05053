package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/etcdfiles"
	"kthwd/test/harness"
)

var rememberedHere = etcdfiles.Record{Cluster: "c1", Member: "a1", Members: 3, Kthwd: "v0.2.0", Kubernetes: "v1.36.3", Etcd: "3.6.16"}

var noLog = slog.New(slog.DiscardHandler)

// lastOfThree makes a data directory with etcd's data of one member of three and n keys.
// The other two members are gone.
func lastOfThree(t *testing.T, n int) config.Controller {
	t.Helper()
	var servers [3]*embed.Etcd
	var configs [3]*embed.Config
	var cluster []string
	for i := range configs {
		peer := freeURL(t)
		c := embed.NewConfig()
		c.Name, c.Dir = fmt.Sprintf("c%d", i), filepath.Join(t.TempDir(), "etcd")
		c.LogLevel = "fatal"
		c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
		c.ListenClientUrls, c.AdvertiseClientUrls = nil, []url.URL{peer}
		c.TickMs, c.ElectionMs = 20, 200
		cluster = append(cluster, c.Name+"="+peer.String())
		configs[i] = c
	}
	for i, c := range configs {
		c.InitialCluster = strings.Join(cluster, ",")
		s, err := embed.StartEtcd(c)
		if err != nil {
			t.Fatal(err)
		}
		servers[i] = s
	}
	for _, s := range servers {
		<-s.Server.ReadyNotify()
	}
	client := v3client.New(servers[0].Server)
	for i := range n {
		if _, err := client.Put(t.Context(), fmt.Sprintf("key-%d", i), "value"); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range servers {
		s.Server.HardStop()
		s.Close()
	}
	return config.Controller{DataDir: filepath.Dir(configs[0].Dir), Name: "c0"}
}

func freeURL(t *testing.T) url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return url.URL{Scheme: "http", Host: l.Addr().String()}
}

func begin(t *testing.T, c config.Controller) *Recovery {
	t.Helper()
	r, err := Begin(t.Context(), c, "v0.1.0", noLog)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// checkAlone starts the member and checks that it has n keys and no other members.
func checkAlone(t *testing.T, dir string, n int) {
	t.Helper()
	c := embed.NewConfig()
	c.Name, c.Dir, c.LogLevel = "c0", dir, "fatal"
	c.InitialCluster = c.InitialClusterFromName("c0")
	c.ListenPeerUrls, c.ListenClientUrls = nil, nil
	c.TickMs, c.ElectionMs = 20, 200
	s, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	select {
	case <-s.Server.ReadyNotify():
	case <-time.After(2 * time.Minute):
		t.Fatal("no leader of one")
	}
	client := v3client.New(s.Server)
	for i := range n {
		got, err := client.Get(t.Context(), fmt.Sprintf("key-%d", i))
		if err != nil || len(got.Kvs) != 1 {
			t.Fatalf("key-%d: got %v %v, want it", i, got, err)
		}
	}
	if members := s.Server.Cluster().Members(); len(members) != 1 {
		t.Errorf("members: got %v, want one", members)
	}
}

func TestRecover(t *testing.T) {
	const n = 20
	c := lastOfThree(t, n)
	r := begin(t, c)
	var lost []string
	for _, l := range r.Lost {
		lost = append(lost, l.Name)
	}
	if got := fmt.Sprint(r.Name, lost); got != "c0[c1 c2]" || r.Rev < n {
		t.Errorf("got %s, revision %d, want c0 and c1, c2 lost, at least %d", got, r.Rev, n)
	}
	revision, err := r.Run(t.Context())
	if err != nil || revision < n {
		t.Fatalf("got revision %d, %v", revision, err)
	}
	r.Close()
	if got, err := etcdfiles.ReadRecord(c.Layout()); err != nil || got == nil || got.Members != 1 || got.Member != r.Member {
		t.Errorf("record: got %+v %v, want member %s alone", got, err, r.Member)
	}
	_, err = Begin(t.Context(), c, "v0.1.0", noLog)
	harness.CheckRefusal(t, err, "only member of its cluster", "start kthwd")
	checkAlone(t, c.Layout().Etcd(), n)

	// The old data are complete, too: the commands that are printed put them back, and they can be
	// recovered again.
	commands := strings.Join(r.WayBack(), "\n")
	if out, err := exec.CommandContext(t.Context(), "sh", "-euc", commands).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", commands, err, out)
	}
	if err := exec.CommandContext(t.Context(), "sh", "-euc", commands).Run(); err == nil {
		t.Errorf("run again, these succeed:\n%s", commands)
	}
	if _, err := os.Stat(filepath.Join(r.Backup, "recovered", "snap", "db")); err != nil {
		t.Errorf("the recovered data: %v", err)
	}
	if again := begin(t, c); len(again.Lost) != 2 {
		t.Errorf("put back: got %+v lost, want two", again.Lost)
	}
}

// After any step at which a recovery dies, either the old or the new data are in place,
// and another recovery completes it.
func TestRecoverDies(t *testing.T) {
	const n = 5
	source := lastOfThree(t, n)
	for steps := range len((&Recovery{}).steps(t.Context(), new(int64))) {
		t.Run(fmt.Sprintf("after %d steps", steps), func(t *testing.T) {
			c := config.Controller{DataDir: t.TempDir(), Name: "c0"}
			if err := os.CopyFS(c.Layout().Etcd(), os.DirFS(source.Layout().Etcd())); err != nil {
				t.Fatal(err)
			}
			r := begin(t, c)
			var revision int64
			all := r.steps(t.Context(), &revision)
			changed := all[steps].changed
			for _, s := range all[:steps] {
				if err := s.do(); err != nil {
					t.Fatalf("%s: %v", s.what, err)
				}
			}
			r.Close() // the process dies here

			again, err := Begin(t.Context(), c, "v0.1.0", noLog)
			if changed {
				harness.CheckRefusal(t, err, "only member of its cluster", "start kthwd")
				if _, err := os.Stat(filepath.Join(r.Backup, "member", "snap", "db")); err != nil {
					t.Errorf("the old data: %v", err)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				if _, err := again.Run(t.Context()); err != nil {
					t.Fatal(err)
				}
				again.Close()
				if left, _ := filepath.Glob(filepath.Join(c.Layout().Etcd(), backupPrefix+"*")); len(left) != 1 || left[0] != again.Backup {
					t.Errorf("left over: got %v, want %s only", left, again.Backup)
				}
			}
			checkAlone(t, c.Layout().Etcd(), n)
		})
	}
}

func TestRecoverStopsWithoutAChange(t *testing.T) {
	c := lastOfThree(t, 1)
	r := begin(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Run(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "nothing has changed") {
		t.Errorf("got %v, want that nothing has changed", err)
	}
	r.Close()
	if left, _ := os.ReadDir(c.Layout().Etcd()); len(left) != 1 {
		t.Errorf("left in etcd's directory: %v, want member only", left)
	}
	if again := begin(t, c); len(again.Lost) != 2 {
		t.Errorf("got %+v lost, want two as before", again.Lost)
	}
}

// ending is a context that ends when it is asked for the n-th time.
type ending struct {
	context.Context
	n int
}

func (e *ending) Err() error {
	if e.n--; e.n < 0 {
		return context.Canceled
	}
	return nil
}

// TestRecoverInterrupted ends the context before each step in turn: either nothing has changed, or the
// recovery is complete and the old data are there.
func TestRecoverInterrupted(t *testing.T) {
	const n = 3
	source := lastOfThree(t, n)
	complete := false
	for asked := 0; !complete; asked++ {
		c := config.Controller{DataDir: t.TempDir(), Name: "c0"}
		if err := os.CopyFS(c.Layout().Etcd(), os.DirFS(source.Layout().Etcd())); err != nil {
			t.Fatal(err)
		}
		r := begin(t, c)
		_, err := r.Run(&ending{t.Context(), asked})
		r.Close()
		switch {
		case err == nil:
			complete = true
			if _, err := os.Stat(filepath.Join(r.Backup, "member", "snap", "db")); err != nil {
				t.Errorf("asked %d times: the old data: %v", asked, err)
			}
			checkAlone(t, c.Layout().Etcd(), n)
		case !strings.Contains(err.Error(), "nothing has changed"):
			t.Errorf("asked %d times: %v", asked, err)
		default:
			if again := begin(t, c); len(again.Lost) != 2 {
				t.Errorf("asked %d times: %v; but lost are %+v, want two as before", asked, err, again.Lost)
			}
		}
	}
}

func TestRecoverRefuses(t *testing.T) {
	c := lastOfThree(t, 1)
	t.Run("a member that answers", func(t *testing.T) {
		r := begin(t, c)
		r.Close()
		u, err := url.Parse(r.Lost[1].Peers[0])
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, err = Begin(t.Context(), c, "v0.1.0", noLog)
		harness.CheckRefusal(t, err, "c2 is not lost", "stop it there, for good")
	})
	t.Run("a running kthwd", func(t *testing.T) {
		lock, err := datadir.Lock(c.Layout())
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		_, err = Begin(t.Context(), c, "v0.1.0", noLog)
		harness.CheckRefusal(t, err, "in use by another kthwd", "stop that one first")
	})
	t.Run("no data", func(t *testing.T) {
		_, err := Begin(t.Context(), config.Controller{DataDir: t.TempDir()}, "v0.1.0", noLog)
		harness.CheckRefusal(t, err, "no data of etcd", "--data-dir")
	})
	t.Run("a log elsewhere", func(t *testing.T) {
		elsewhere := c
		elsewhere.EtcdArgs = []string{"wal-dir=/elsewhere"}
		_, err := Begin(t.Context(), elsewhere, "v0.1.0", noLog)
		harness.CheckRefusal(t, err, "/elsewhere", "leave the argument out")
	})
	t.Run("a member without a vote", func(t *testing.T) {
		r := begin(t, c)
		r.Close()
		r.self.IsLearner = true
		harness.CheckRefusal(t, r.refuse(), "had no vote", "restore a snapshot")
	})
	t.Run("more than the disk has", func(t *testing.T) {
		r := begin(t, c)
		r.Close()
		r.Size = 1 << 60
		harness.CheckRefusal(t, r.refuse(), "MB free, and the copy", "make room")
	})
	t.Run("another cluster's data", func(t *testing.T) {
		if err := rememberedHere.Write(c.Layout()); err != nil {
			t.Fatal(err)
		}
		defer datadir.Forget(c.Layout())
		_, err := Begin(t.Context(), c, "v0.2.0", noLog)
		harness.CheckRefusal(t, err, "but this controller is member a1", "put back")
	})
}

func TestCommitAll(t *testing.T) {
	entry := func(index uint64, kind raftpb.EntryType) *raftpb.Entry {
		return &raftpb.Entry{Term: proto.Uint64(2), Index: &index, Type: &kind}
	}
	normal, change := raftpb.EntryNormal, raftpb.EntryConfChange
	for _, tt := range []struct {
		name         string
		entries      []*raftpb.Entry
		commit, want uint64
		snapshot     uint64 // recorded in the log, of which there is no file
	}{
		{"all known to be committed", []*raftpb.Entry{entry(1, change), entry(2, normal)}, 2, 2, 0},
		{"two are not", []*raftpb.Entry{entry(1, change), entry(2, normal), entry(3, normal)}, 1, 3, 0},
		{"up to a change of the membership", []*raftpb.Entry{entry(1, change), entry(2, normal), entry(3, change), entry(4, normal)}, 1, 2, 0},
		{"torn at the end", []*raftpb.Entry{entry(1, change), entry(2, normal), entry(3, normal)}, 1, 2, 0},
		{"after a snapshot", []*raftpb.Entry{entry(11, normal), entry(12, normal), entry(13, normal)}, 11, 13, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			walDir := filepath.Join(dir, "wal")
			if err := os.Mkdir(filepath.Join(dir, "snap"), 0o700); err != nil {
				t.Fatal(err)
			}
			metadata, err := proto.Marshal(&etcdserverpb.Metadata{ClusterID: proto.Uint64(1), NodeID: proto.Uint64(2)})
			if err != nil {
				t.Fatal(err)
			}
			w, err := wal.Create(zap.NewNop(), walDir, metadata)
			if err != nil {
				t.Fatal(err)
			}
			begin := &walpb.Snapshot{}
			if tt.snapshot != 0 {
				begin = &walpb.Snapshot{Index: &tt.snapshot, Term: proto.Uint64(2), ConfState: &raftpb.ConfState{Voters: []uint64{2}}}
				if err := w.SaveSnapshot(begin); err != nil {
					t.Fatal(err)
				}
			}
			last := len(tt.entries) - 1
			if err := w.Save(&raftpb.HardState{Term: proto.Uint64(2), Commit: &tt.commit}, tt.entries[:last]); err != nil {
				t.Fatal(err)
			}
			if err := w.Save(nil, tt.entries[last:]); err != nil {
				t.Fatal(err)
			}
			w.Close()
			if tt.name == "torn at the end" {
				tear(t, filepath.Join(walDir, "0000000000000000-0000000000000000.wal"))
			}
			kept, err := etcdfiles.CommitAll(dir)
			if err != nil || kept != int(tt.want-tt.commit) {
				t.Errorf("got %d entries kept, %v, want %d", kept, err, tt.want-tt.commit)
			}
			r, err := wal.Open(zap.NewNop(), walDir, begin)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, state, _, err := r.ReadAll(); err != nil || state.GetCommit() != tt.want || state.GetTerm() != 2 {
				t.Errorf("got %+v %v, want commit %d", state, err, tt.want)
			}
		})
	}
}

// tear makes the last record look like an interrupted write.
func tear(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := wal.NewDecoder(fileutil.NewFileReader(f))
	var before int64
	for rec := (&walpb.Record{}); ; {
		at := d.LastOffset()
		if err := d.Decode(rec); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			break
		}
		if rec.GetType() == wal.CrcType {
			d.UpdateCRC(rec.GetCrc())
		}
		before = at
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	// The record keeps its length and nothing else.
	if err := errors.Join(f.Truncate(before+8), f.Truncate(info.Size())); err != nil {
		t.Fatal(err)
	}
}
