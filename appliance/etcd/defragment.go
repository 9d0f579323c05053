package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

// A defragmentation holds every lock of the member's database until the file is rewritten
// (storage/backend/backend.go:defrag): each request to this member waits, even a read of its
// own data. Raft goes on, so the cluster writes on if this member does not lead; a leader
// that defragments stops all writes, and nobody elects another. Therefore each request for
// one, from kthwd etcd space or from etcdctl, passes Defragment.
const (
	defragRate   = 10 << 20         // bytes a second: a slower disk is stuck
	defragGrace  = time.Minute      // for what the rate does not count
	defragSpare  = int64(128 << 20) // room on the disk, beside the new file
	catchUpLimit = 5 * time.Minute
)

// defragmentation is the state of a defragmentation. The zero value is: none.
type defragmentation struct {
	mu          sync.Mutex
	since       time.Time // zero for none
	rewriting   bool      // the database is locked
	until       time.Time // of rewriting, on the slowest disk that works
	size, inUse int64     // before it
}

// begin reports whether no other one is under way.
func (d *defragmentation) begin(size, inUse int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.since.IsZero() {
		return false
	}
	d.since, d.size, d.inUse = time.Now(), size, inUse
	return true
}

func (d *defragmentation) rewrite() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rewriting = true
	d.until = time.Now().Add(defragGrace + time.Duration(float64(d.size)/defragRate*float64(time.Second)))
}

func (d *defragmentation) rewritten() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rewriting = false
}

func (d *defragmentation) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.since, d.rewriting = time.Time{}, false
}

// sizes returns those of the database before it was locked.
func (d *defragmentation) sizes() (size, inUse int64, locked bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.size, d.inUse, d.rewriting
}

// Defragmenting returns since when the member defragments its database; zero if it does
// not.
func (e *Member) Defragmenting() time.Time {
	e.defrag.mu.Lock()
	defer e.defrag.mu.Unlock()
	return e.defrag.since
}

// Rewriting reports whether the database is locked because it is rewritten, and has not been
// for longer than a slow disk needs.
func (e *Member) Rewriting() bool {
	e.defrag.mu.Lock()
	defer e.defrag.mu.Unlock()
	return e.defrag.rewriting && time.Now().Before(e.defrag.until)
}

// OnAbsence sets what sends this controller's clients to the others before the member
// defragments its database. It blocks until they have gone, and returns what brings them
// back. Call it before Run.
func (e *Member) OnAbsence(leave func(ctx context.Context) (back func(), err error)) {
	e.absence = leave
}

// OnClose sets what ends those who read the database in this process, before it is closed. It
// returns when they have ended. Call OnClose before Run.
func (e *Member) OnClose(end func()) { e.endReaders = end }

// maintain is a grpc.UnaryServerInterceptor. It makes two of etcd's own requests harmless for
// the clients of the cluster, and lets a third be answered meanwhile.
func (e *Member) maintain(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	switch r := req.(type) {
	case *pb.StatusRequest:
		if _, _, locked := e.defrag.sizes(); locked {
			return e.StatusResponse() // etcd's own waits for the lock of the database
		}
	case *pb.DefragmentRequest:
		failed := e.Defragment(ctx, func() error {
			answer, err = handle(ctx, req)
			return err
		})
		return answer, failed
	case *pb.MoveLeaderRequest:
		e.transfers.HoldWrites(ctx, e.Running(), func() { answer, err = handle(ctx, r) })
		return answer, err
	}
	return handle(ctx, req)
}

// Defragment calls rewrite, which defragments the database of this member, while no client of
// this controller waits for it. If another controller is ready, this one first sends its
// clients there and gives up its leases and etcd's leadership; they come back when the
// member has caught up. Defragment returns an error, and does nothing, if the disk has too
// little room or another member defragments. Once rewrite has begun, the end of ctx does
// not stop it.
func (e *Member) Defragment(ctx context.Context, rewrite func() error) error {
	server := e.Running()
	if server == nil {
		return grpcstatus.Error(codes.Unavailable, "etcd has not started")
	}
	b := server.Server.Backend()
	if !e.defrag.begin(b.Size(), b.SizeInUse()) {
		return refused("this member defragments already")
	}
	defer e.defrag.end()
	if err := e.mayDefragment(ctx, server, b.SizeInUse()); err != nil {
		return err
	}
	e.sayState("defragmenting")
	defer e.sayState("")
	begun := time.Now()
	if e.Redundant() {
		back, err := e.leaveClients(ctx, server)
		if err != nil {
			return err
		}
		defer back()
	}
	e.log.Info("defragmenting: requests to this member wait", "bytes", b.Size(), "used", b.SizeInUse())
	locked := time.Now()
	e.defrag.rewrite()
	err := rewrite()
	e.defrag.rewritten()
	took := time.Since(locked)
	e.fsyncs.Forget() // the disk wrote the new file, and was not slow
	if err != nil {
		return err
	}
	e.catchUp(ctx, server)
	e.log.Info("defragmented", "bytes", server.Server.Backend().Size(), "locked", took.Round(time.Millisecond), "took", time.Since(begun).Round(time.Millisecond))
	return nil
}

// mayDefragment returns an error if this member must not defragment now.
func (e *Member) mayDefragment(ctx context.Context, server *embed.Etcd, inUse int64) error {
	var disk unix.Statfs_t
	dir := filepath.Join(e.cfg.Dir, "member", "snap")
	if err := unix.Statfs(dir, &disk); err != nil {
		return refused(fmt.Sprintf("%s: %v", dir, err))
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < inUse+defragSpare {
		return refused(fmt.Sprintf("the disk with %s has %s free, and a defragmentation writes %s beside the old file; make room first", dir, text.Bytes(free), text.Bytes(inUse)))
	}
	if e.views == nil {
		return nil
	}
	for _, m := range server.Server.Cluster().Members() {
		if m.ID == server.Server.MemberID() {
			continue
		}
		if c, known := e.views.View(ctx, uint64(m.ID), true); known && c.Defragmenting {
			return refused(text.Line(m.Name) + " defragments; one member at a time")
		}
	}
	return nil
}

func refused(why string) error { return grpcstatus.Error(codes.FailedPrecondition, why) }

// leaveClients sends the clients of this controller and etcd's leadership to others. It leaves
// everything as it is if no other controller is ready: with the alarm NOSPACE none is, because
// no lease can be renewed.
func (e *Member) leaveClients(ctx context.Context, server *embed.Etcd) (back func(), err error) {
	back = func() {}
	if e.absence != nil && e.anotherReady(ctx, server) {
		if back, err = e.absence(ctx); err != nil {
			back()
			return nil, err
		}
	}
	e.TransferLeadership(ctx, server, slog.LevelWarn)
	if server.Server.Lead() == uint64(server.Server.MemberID()) {
		back()
		return nil, refused("this member leads, and leadership could not be moved: all writes of the cluster would wait")
	}
	return back, nil
}

// anotherReady reports whether another controller says that it is ready.
func (e *Member) anotherReady(ctx context.Context, server *embed.Etcd) bool {
	if e.views == nil {
		return false
	}
	for _, m := range server.Server.Cluster().Members() {
		if m.ID == server.Server.MemberID() || m.IsLearner {
			continue
		}
		if c, known := e.views.View(ctx, uint64(m.ID), false); known && c.Ready {
			return true
		}
	}
	e.log.Warn("no other controller is ready: clients of this one wait until the database is defragmented")
	return false
}

// catchUp waits until this member has applied what the cluster has committed meanwhile.
func (e *Member) catchUp(ctx context.Context, server *embed.Etcd) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), catchUpLimit)
	defer cancel()
	for target := server.Server.CommittedIndex(); server.Server.AppliedIndex() < target && ctx.Err() == nil; {
		select {
		case <-server.Server.StopNotify():
			return
		default:
			supervise.Sleep(ctx, ReadyPoll)
		}
	}
}

// sayState makes the state record show why the component is as it is.
func (e *Member) sayState(state string) {
	e.mu.Lock()
	report := e.report
	e.mu.Unlock()
	if report != nil {
		report(state)
	}
}

// MoveLeader makes another member the leader. It returns an error if this one does not lead.
func (e *Member) MoveLeader(ctx context.Context, to types.ID) (err error) {
	server := e.Running()
	if server == nil {
		return grpcstatus.Error(codes.Unavailable, "etcd has not started")
	}
	e.transfers.HoldWrites(ctx, server, func() { err = server.Server.MoveLeader(ctx, uint64(server.Server.MemberID()), uint64(to)) })
	return err
}
