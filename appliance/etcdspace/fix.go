package etcdspace

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcd"
	"kthwd/appliance/text"
)

const (
	worthShare  = 0.05             // of the file below which a defragmentation is not worth its pause
	settleLimit = 15 * time.Minute // for the compaction of one member: etcd pauses after each batch
	between     = 5 * time.Second  // two members: load balancers see that the first is back
	backLimit   = 5 * time.Minute  // for a member to be healthy again

	// lockKey is held by the one run of Fix in the cluster.
	lockKey  = "/kthwd/space/lock"
	lockTTL  = 15 * time.Second // after a run that was killed
	lockWait = 3 * lockTTL
)

// ErrNothing means that the databases hold hardly anything but data in use.
var ErrNothing = errors.New("nothing can be reclaimed")

// Plan is what Fix does, in this order.
type Plan struct {
	Status     Status   `json:"status"`
	Defragment []string `json:"defragment"` // names of members, the leader last
	Disarm     []string `json:"disarm,omitempty"`
	Alone      bool     `json:"alone,omitempty"` // no other member serves meanwhile
}

// Lines describes the plan, a line for each step.
func (p Plan) Lines() []string {
	all := []string{fmt.Sprintf("compact        drop all revisions of keys before %d", p.Status.Revision)}
	for _, name := range p.Defragment {
		m := p.Status.member(name)
		what := "clients go to the other controllers meanwhile"
		switch {
		case p.Alone:
			what = "requests wait meanwhile: there is no other controller"
		case m.Leader:
			what = "last, because it leads: leadership moves first; " + what
		}
		all = append(all, fmt.Sprintf("defragment %s  %s, %s of it free before the compaction; %s", name, text.Bytes(m.Size), text.Bytes(m.Free()), what))
	}
	if len(p.Disarm) > 0 {
		all = append(all, "disarm         NOSPACE of "+strings.Join(p.Disarm, ", ")+", once every member is below its quota")
	}
	return append(all, "A member with less than 5 % free after the compaction is left as it is. No key is deleted.")
}

// Plan looks at every member. It refuses without a leader, and when a member is not
// healthy: the others must serve while one defragments.
func (c *Cluster) Plan(ctx context.Context) (Plan, error) {
	s, err := c.Status(ctx)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Status: s, Alone: len(s.Members) == 1}
	if err := s.sound(); err != nil {
		return p, err
	}
	for _, m := range s.Members {
		if !m.Leader {
			p.Defragment = append(p.Defragment, m.Name)
		}
		if m.Full() {
			p.Disarm = append(p.Disarm, m.Name)
		}
	}
	p.Defragment = append(p.Defragment, s.leader().Name)
	return p, nil
}

// sound refuses what Fix must not touch.
func (s Status) sound() error {
	if s.leader() == nil {
		return advice.With(errors.New("etcd has no quorum: nothing can be compacted"), "kthwd status says which members are missing")
	}
	if bad := s.unhealthy(""); len(bad) > 0 {
		return advice.With(fmt.Errorf("not while a member is unhealthy: %s", strings.Join(bad, "; ")), "kthwd etcd status shows the members; bring it back first, or remove it with kthwd member remove")
	}
	return nil
}

// Fixed is what Fix has done.
type Fixed struct {
	Compacted int64         `json:"compacted"` // revision
	Members   []FixedMember `json:"members"`
	Disarmed  []string      `json:"disarmed,omitempty"`
}

// FixedMember is what was done to one member.
type FixedMember struct {
	Name   string        `json:"name"`
	Before int64         `json:"beforeBytes"`
	After  int64         `json:"afterBytes"`
	Took   time.Duration `json:"tookNanoseconds,omitempty"` // with the time until its clients had gone; 0 if it was left as it was
}

// Fix makes room: it compacts, defragments one member after the other, and turns the alarm
// about the quota off when every member is below it. report is called before each step. The
// error is ErrNothing if there is such an alarm, and no member has anything to give back:
// then the alarm stays on.
func (c *Cluster) Fix(ctx context.Context, p Plan, report func(step string)) (f Fixed, err error) {
	release, err := c.lock(ctx, p, report)
	if err != nil {
		return f, err
	}
	defer release()
	f.Compacted = p.Status.Revision
	report(fmt.Sprintf("compact to revision %d", f.Compacted))
	if err := compact(ctx, c.local, f.Compacted); err != nil {
		return Fixed{}, fmt.Errorf("compact: %w", err)
	}
	for i, name := range p.Defragment {
		one, err := c.fixMember(ctx, name, f.Compacted, i > 0 && f.touched(), report)
		if err != nil {
			return f, err
		}
		f.Members = append(f.Members, one)
	}
	return f, c.disarm(ctx, &f, report)
}

// touched reports whether a member was defragmented.
func (f Fixed) touched() bool {
	for _, m := range f.Members {
		if m.Took > 0 {
			return true
		}
	}
	return false
}

// compact drops all revisions of keys before revision, and returns when the member of the
// client has deleted and committed them. The other members delete theirs at their own pace.
// Where that revision is compacted already, etcd says so, but only after what is still to be
// deleted (server/etcdserver/v3_server.go and server/storage/mvcc/kvstore.go:updateCompactRev):
// a second call awaits another member.
func compact(ctx context.Context, client *clientv3.Client, revision int64) error {
	_, err := client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	if err == nil || errors.Is(err, rpctypes.ErrCompacted) {
		return nil
	}
	return plain(err)
}

// fixMember defragments one member, unless it is not worth it.
func (c *Cluster) fixMember(ctx context.Context, name string, compacted int64, another bool, report func(string)) (f FixedMember, err error) {
	m, err := c.settled(ctx, name, compacted)
	if err != nil {
		return f, err
	}
	f = FixedMember{Name: name, Before: m.Size, After: m.Size}
	if float64(m.Free()) < worthShare*float64(m.Size) {
		report(fmt.Sprintf("%s is left as it is: %s of %s are free", name, text.Bytes(m.Free()), text.Bytes(m.Size)))
		return f, nil
	}
	if another {
		select {
		case <-time.After(between):
		case <-ctx.Done():
			return f, ctx.Err()
		}
	}
	client, endpoint, err := c.of(m)
	if err != nil {
		return f, err
	}
	report(fmt.Sprintf("defragment %s: %s, %s in use", name, text.Bytes(m.Size), text.Bytes(m.InUse)))
	begun := time.Now()
	if _, err := client.Defragment(ctx, endpoint); err != nil {
		return f, fmt.Errorf("defragment %s: %w", name, plain(err))
	}
	f.Took = time.Since(begun)
	after, err := c.back(ctx, name)
	f.After = after.Size
	return f, err
}

// settled waits until a member has deleted what the compaction drops, and has counted the
// pages that this has freed: what is deleted after a defragmentation leaves gaps again.
func (c *Cluster) settled(ctx context.Context, name string, compacted int64) (m Member, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, settleLimit, fmt.Errorf("%s has not finished the compaction within %v", name, settleLimit))
	defer cancel()
	if m, err = c.soundMember(ctx, name); err != nil {
		return m, err
	}
	// Each call commits, and etcd counts a page as free in the commit after the one that freed it.
	for calls := 1; ; calls++ {
		client, _, err := c.of(m)
		if err != nil {
			return m, err
		}
		last := m.InUse
		switch err := compact(ctx, client, compacted); {
		case ctx.Err() != nil:
			return m, context.Cause(ctx)
		case err != nil:
			return m, fmt.Errorf("wait for the compaction of %s: %w", name, err)
		}
		if m, err = c.soundMember(ctx, name); err != nil || calls > 1 && m.InUse >= last {
			return m, err
		}
	}
}

// soundMember returns a member, and refuses to go on when any is unhealthy by now.
func (c *Cluster) soundMember(ctx context.Context, name string) (m Member, err error) {
	s, err := c.Status(ctx)
	if err != nil {
		return m, err
	}
	if err := s.sound(); err != nil {
		return m, err
	}
	if now := s.member(name); now != nil {
		return *now, nil
	}
	return m, fmt.Errorf("%s has left the cluster meanwhile", name)
}

// back waits until a member that was defragmented is healthy again.
func (c *Cluster) back(ctx context.Context, name string) (m Member, err error) {
	ctx, cancel := context.WithTimeout(ctx, backLimit)
	defer cancel()
	for {
		s, err := c.Status(ctx)
		if err != nil {
			return m, err
		}
		if now := s.member(name); now != nil && now.State == StateOK {
			return *now, nil
		}
		select {
		case <-time.After(etcd.ReadyPoll):
		case <-ctx.Done():
			return m, fmt.Errorf("%s is not healthy again after its defragmentation: %w", name, ctx.Err())
		}
	}
}

// disarm turns the alarms about the quota off, if every member is below it: an alarm that
// is turned off too early comes back with the next write.
func (c *Cluster) disarm(ctx context.Context, f *Fixed, report func(string)) error {
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	for _, m := range s.Members {
		if s.Full() && m.Quota > 0 && m.Size >= m.Quota {
			return advice.With(fmt.Errorf("%s still has %s, and the quota is %s: the alarm stays on", m.Name, text.Bytes(m.Size), text.Bytes(m.Quota)), needsRoom)
		}
	}
	if !s.Full() {
		return nil
	}
	if !f.touched() && f.unrelieved(s) {
		return nothing(s)
	}
	alarms, err := c.local.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("list the alarms: %w", plain(err))
	}
	for _, a := range alarms.Alarms {
		if a.Alarm != pb.AlarmType_NOSPACE {
			continue
		}
		name := fmt.Sprintf("%x", a.MemberID)
		if m := s.member(name); m != nil {
			name = m.Name
		}
		report("turn the alarm NOSPACE of " + name + " off")
		if _, err := c.local.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return fmt.Errorf("turn the alarm of %s off: %w", name, plain(err))
		}
		f.Disarmed = append(f.Disarmed, name)
	}
	return nil
}

// needsRoom is the advice when there is no gap to close.
const needsRoom = "kthwd etcd space shows what fills it; delete objects, or raise the quota with --etcd-arg=quota-backend-bytes=BYTES and restart kthwd, then run kthwd etcd space --fix again"

// unrelieved reports whether the database of a member is so near to its quota that the alarm
// would come back at once. A run that was killed may have defragmented before.
func (f Fixed) unrelieved(s Status) bool {
	for _, m := range s.Members {
		if m.Quota > 0 && float64(m.Size) >= (1-worthShare)*float64(m.Quota) {
			return true
		}
	}
	return false
}

func nothing(s Status) error {
	most := s.Members[0]
	for _, m := range s.Members {
		if m.Size > most.Size {
			most = m
		}
	}
	return advice.With(fmt.Errorf("%w: %s of %s are in use on %s, and the quota is %s", ErrNothing, text.Bytes(most.InUse), text.Bytes(most.Size), most.Name, text.Bytes(most.Quota)), needsRoom)
}

// lock makes this the only run in the cluster. With the alarm about the quota nothing can be
// written, not even a lock: then the members alone refuse to defragment side by side.
func (c *Cluster) lock(ctx context.Context, p Plan, report func(string)) (release func(), err error) {
	if p.Status.Full() {
		return func() {}, nil
	}
	holder := "a member"
	for _, m := range p.Status.Members {
		if m.Here {
			holder = m.Name
		}
	}
	session, err := concurrency.NewSession(c.local, concurrency.WithTTL(int(lockTTL/time.Second)), concurrency.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("lock: %w", plain(err))
	}
	for end, said := time.Now().Add(lockWait), false; ; {
		r, err := c.local.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(lockKey), "=", 0)).
			Then(clientv3.OpPut(lockKey, holder, clientv3.WithLease(session.Lease()))).Else(clientv3.OpGet(lockKey)).Commit()
		switch {
		case err != nil:
			return nil, errors.Join(fmt.Errorf("lock: %w", plain(err)), session.Close())
		case r.Succeeded:
			return func() { session.Close() }, nil
		}
		other := "another controller"
		if kvs := r.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
			other = text.Line(string(kvs[0].Value))
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("%s makes room already; one run at a time", other), session.Close())
		}
		if !said {
			said = true
			report("wait for a run on " + other + " that has not ended, or was killed")
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), session.Close())
		}
	}
}
