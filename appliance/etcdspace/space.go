// Package etcdspace makes room in the database of a running etcd member: it compacts,
// defragments, and disarms the alarm that etcd raises at its quota.
//
//	result, err := etcdspace.Reclaim(ctx, layout.EtcdSocket())
//
// The member must run, because the steps are requests to it through its unix socket, which
// asks for no certificate. Each member has a database of its own: Reclaim is needed on each.
// No key is deleted. A compaction drops old revisions of keys in the whole cluster; a
// client that reads one of these gets "too old" and reads again, as Kubernetes' clients do.
package etcdspace

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcdsocket"
)

const (
	worthShare = 0.05                   // share of the file below which a defragmentation is not worth its pause
	settle     = 2 * time.Second        // for etcd to count what a compaction has freed
	settlePoll = 100 * time.Millisecond // etcd commits as often
)

// ErrNothing means that the database holds hardly anything but data in use.
var ErrNothing = errors.New("nothing can be reclaimed")

// Result is what Reclaim has done.
type Result struct {
	Before, After int64 // size of the database's file in bytes
	InUse, Quota  int64
	Disarmed      bool     // this member's alarm is off
	Others        []string // ids, in hex, of other members that still have the alarm
}

// Reclaim makes room in the database of the member behind socket. It blocks until the member
// has rewritten its file, which takes seconds for each GiB; requests to it wait meanwhile.
// If nothing can be reclaimed, the error is ErrNothing, and the alarm stays on.
func Reclaim(ctx context.Context, socket string) (Result, error) {
	client, err := etcdsocket.Connect(ctx, socket)
	if err != nil {
		return Result{}, err
	}
	defer client.Close()
	return reclaim(ctx, client, client.Endpoints()[0])
}

func reclaim(ctx context.Context, client *clientv3.Client, endpoint string) (r Result, err error) {
	before, err := client.Status(ctx, endpoint)
	if err != nil {
		return r, fmt.Errorf("ask the etcd member: %w", err)
	}
	r.Before, r.Quota = before.DbSize, before.DbSizeQuota
	if _, err := client.Compact(ctx, before.Header.Revision, clientv3.WithCompactPhysical()); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return r, fmt.Errorf("compact: %w", err)
	}
	if r.InUse, err = inUse(ctx, client, endpoint); err != nil {
		return r, err
	}
	if float64(r.Before-r.InUse) < worthShare*float64(r.Before) {
		r.After = r.Before
		return r, advice.With(fmt.Errorf("%w: %d of %d bytes are in use, and the quota is %d", ErrNothing, r.InUse, r.Before, r.Quota),
			"delete objects, or raise the quota with --etcd-arg=quota-backend-bytes=BYTES and restart kthwd")
	}
	if _, err := client.Defragment(ctx, endpoint); err != nil {
		return r, fmt.Errorf("defragment: %w", err)
	}
	after, err := client.Status(ctx, endpoint)
	if err != nil {
		return r, fmt.Errorf("ask the etcd member: %w", err)
	}
	r.After, r.InUse = after.DbSize, after.DbSizeInUse
	if r.Quota > 0 && r.After >= r.Quota {
		return r, advice.With(fmt.Errorf("the database still has %d bytes, and the quota is %d: the alarm stays on", r.After, r.Quota),
			"raise the quota with --etcd-arg=quota-backend-bytes=BYTES and restart kthwd, then run kthwd etcd space again")
	}
	return r, r.disarm(ctx, client, after.Header.MemberId)
}

// inUse waits until etcd has counted what the compaction has freed, or settle is over.
func inUse(ctx context.Context, client *clientv3.Client, endpoint string) (least int64, err error) {
	for end := time.Now().Add(settle); ; {
		s, err := client.Status(ctx, endpoint)
		if err != nil {
			return 0, fmt.Errorf("ask the etcd member: %w", err)
		}
		if least == 0 || s.DbSizeInUse < least {
			least = s.DbSizeInUse
		}
		if time.Now().After(end) || float64(s.DbSize-least) >= worthShare*float64(s.DbSize) {
			return least, nil
		}
		select {
		case <-time.After(settlePoll):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// disarm turns the alarm of this member off, and lists the others that have it.
func (r *Result) disarm(ctx context.Context, client *clientv3.Client, member uint64) error {
	alarms, err := client.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("list the alarms: %w", err)
	}
	for _, a := range alarms.Alarms {
		switch {
		case a.Alarm != pb.AlarmType_NOSPACE:
		case a.MemberID != member:
			r.Others = append(r.Others, fmt.Sprintf("%x", a.MemberID))
		default:
			if _, err := client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
				return fmt.Errorf("disarm: %w", err)
			}
			r.Disarmed = true
		}
	}
	return nil
}
