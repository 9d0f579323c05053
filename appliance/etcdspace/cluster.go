// Package etcdspace looks at the databases of a running etcd cluster, and makes room in them.
//
//	c, err := etcdspace.Open(ctx, layout)
//	defer c.Close()
//	status, err := c.Status(ctx)  // every member
//	usage, err := c.Usage(ctx)    // what the space is used for
//	plan, err := c.Plan(ctx)      // what Fix would do
//	result, err := c.Fix(ctx, plan, report)
//
// A Cluster reaches the member of its data directory through the unix socket, and the others
// at their client ports, with the controller's certificate. It deletes no key. A compaction
// drops old revisions of keys; a client that reads one of these gets "too old" and reads
// again, as Kubernetes' clients do.
//
// Fix needs no state of its own: it looks at each member, so that a run after one that was
// killed goes on. How a member is defragmented without harm is the member's own matter, see
// package etcd.
//
// Growth runs in the controller, and keeps the sizes of the last two weeks below /kthwd in
// etcd.
package etcdspace

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcdsocket"
	"kthwd/appliance/pki"
)

const (
	statusTimeout = 5 * time.Second // for the answer of one member
	behind        = 1000            // entries that a member may have to apply yet
	keepAlive     = 10 * time.Second
)

// Cluster is an etcd cluster. Make one with Open.
type Cluster struct {
	local  *clientv3.Client
	tls    *tls.Config
	noTLS  error // why the other members cannot be asked
	remote map[uint64]*clientv3.Client
}

// Open connects to the member that runs on a data directory. It fails at once if none does.
func Open(ctx context.Context, l pki.Layout) (*Cluster, error) {
	local, err := etcdsocket.Connect(ctx, l.EtcdSocket())
	if err != nil {
		return nil, err
	}
	c := &Cluster{local: local, remote: map[uint64]*clientv3.Client{}}
	c.tls, c.noTLS = pki.ClientTLS(l)
	return c, nil
}

// Close ends the connections.
func (c *Cluster) Close() {
	c.local.Close()
	for _, r := range c.remote {
		r.Close()
	}
}

// Local is the client of the member here. Close ends it.
func (c *Cluster) Local() *clientv3.Client { return c.local }

// Status is the state of a cluster.
type Status struct {
	Cluster  string   `json:"cluster"` // its ID
	Leader   string   `json:"leader"`  // its name; empty if there is none
	Revision int64    `json:"revision"`
	Members  []Member `json:"members"` // by name
}

// Member is the state of one member. After Error only the first four are known.
type Member struct {
	Name    string   `json:"name"`
	ID      string   `json:"id"`
	Here    bool     `json:"here,omitempty"`
	Learner bool     `json:"learner,omitempty"`
	Leader  bool     `json:"leader,omitempty"`
	Version string   `json:"version,omitempty"`
	Storage string   `json:"storageVersion,omitempty"`  // of the format of its database
	Target  string   `json:"downgradeTarget,omitempty"` // of etcd's own downgrade, while it is enabled
	Term    uint64   `json:"term,omitempty"`
	Index   uint64   `json:"index,omitempty"`   // of the last entry that is committed, in its view
	Applied uint64   `json:"applied,omitempty"` // of the last entry that it has applied
	Size    int64    `json:"sizeBytes,omitempty"`
	InUse   int64    `json:"inUseBytes,omitempty"`
	Quota   int64    `json:"quotaBytes,omitempty"`
	Alarms  []string `json:"alarms,omitempty"`
	State   string   `json:"state"`           // ok, defragmenting, behind, leaderless, learner or no answer
	Error   string   `json:"error,omitempty"` // why it does not answer

	id      uint64
	clients []string
	knows   uint64 // the leader in its view
}

// The states of a member.
const (
	StateOK         = "ok"
	StateBehind     = "behind"
	StateLeaderless = "leaderless"
	StateLearner    = "learner"
	StateSilent     = "no answer"
)

// Full reports whether the member has the alarm about its quota.
func (m Member) Full() bool { return slices.Contains(m.Alarms, pb.AlarmType_NOSPACE.String()) }

// Corrupt reports whether the member has the alarm about its data.
func (m Member) Corrupt() bool { return slices.Contains(m.Alarms, pb.AlarmType_CORRUPT.String()) }

// Free is the part of the file that a defragmentation gives back.
func (m Member) Free() int64 { return max(m.Size-m.InUse, 0) }

// member returns the member with that name or ID, or nil.
func (s Status) member(name string) *Member {
	i := slices.IndexFunc(s.Members, func(m Member) bool { return m.Name == name || m.ID == name })
	if i < 0 {
		return nil
	}
	return &s.Members[i]
}

// leader returns the leading member, or nil.
func (s Status) leader() *Member {
	i := slices.IndexFunc(s.Members, func(m Member) bool { return m.Leader })
	if i < 0 {
		return nil
	}
	return &s.Members[i]
}

// unhealthy names the members that are not as they should be; leaving the one called but out.
func (s Status) unhealthy(but string) (all []string) {
	for _, m := range s.Members {
		switch {
		case m.Name == but:
		case m.Corrupt():
			all = append(all, m.Name+" has the alarm CORRUPT")
		case m.Error != "":
			all = append(all, m.Name+" does not answer: "+m.Error)
		case m.State != StateOK:
			all = append(all, m.Name+" is "+m.State)
		}
	}
	return all
}

// Full reports whether a member has the alarm about its quota.
func (s Status) Full() bool { return slices.ContainsFunc(s.Members, Member.Full) }

// Status asks every member. One that does not answer in time is in the result; an error
// means that not even the member here tells who belongs to the cluster.
func (c *Cluster) Status(ctx context.Context) (Status, error) {
	asked, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	list, err := c.local.MemberList(asked, clientv3.WithSerializable())
	if err != nil {
		return Status{}, fmt.Errorf("ask the etcd member for the others: %w", plain(err))
	}
	s := Status{Cluster: types.ID(list.Header.ClusterId).String()}
	for _, m := range list.Members {
		name := m.Name
		if name == "" {
			name = types.ID(m.ID).String()
		}
		s.Members = append(s.Members, Member{
			Name: name, ID: types.ID(m.ID).String(), Here: m.ID == list.Header.MemberId,
			Learner: m.IsLearner, id: m.ID, clients: m.ClientURLs,
		})
	}
	slices.SortFunc(s.Members, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	for i := range s.Members {
		c.connect(&s.Members[i])
	}
	revisions := make([]int64, len(s.Members))
	var wait sync.WaitGroup
	for i := range s.Members {
		wait.Go(func() { revisions[i] = c.ask(asked, &s.Members[i]) })
	}
	wait.Wait()
	s.Revision = slices.Max(append(revisions, 0))
	s.judge()
	return s, ctx.Err()
}

// connect makes the client of another member, if it can be asked at all.
func (c *Cluster) connect(m *Member) {
	switch {
	case m.Here || c.remote[m.id] != nil:
		return
	case len(m.clients) == 0:
		m.Error = "it has not started yet"
		return
	case c.noTLS != nil:
		m.Error = c.noTLS.Error()
		return
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: m.clients, TLS: c.tls, Logger: zap.NewNop(), DialKeepAliveTime: keepAlive, DialKeepAliveTimeout: keepAlive,
		DialOptions: []grpc.DialOption{grpc.WithNoProxy()},
	})
	if err != nil {
		m.Error = err.Error()
		return
	}
	c.remote[m.id] = client
}

// of returns the client of a member, and the endpoint that means the member.
func (c *Cluster) of(m Member) (*clientv3.Client, string, error) {
	client := c.remote[m.id]
	if m.Here {
		client = c.local
	}
	if client == nil {
		return nil, "", fmt.Errorf("%s cannot be asked: %s", m.Name, m.Error)
	}
	return client, client.Endpoints()[0], nil
}

// ask completes m with its own answer, and returns its revision.
func (c *Cluster) ask(ctx context.Context, m *Member) int64 {
	client, endpoint, err := c.of(*m)
	if err != nil {
		return 0
	}
	r, err := client.Status(ctx, endpoint)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		m.Error = "no answer within " + statusTimeout.String()
		return 0
	case err != nil:
		m.Error = plain(err).Error()
		return 0
	}
	m.Version, m.Term, m.Index, m.Applied = r.Version, r.RaftTerm, r.RaftIndex, r.RaftAppliedIndex
	m.Size, m.InUse, m.Quota, m.Learner, m.knows = r.DbSize, r.DbSizeInUse, r.DbSizeQuota, r.IsLearner, r.Leader
	m.State, m.Storage = StateOK, r.StorageVersion
	if d := r.DowngradeInfo; d.GetEnabled() {
		m.Target = d.GetTargetVersion()
	}
	for _, e := range r.Errors {
		m.note(e)
	}
	return r.Header.Revision
}

// note reads one error of an answer: an alarm of any member, or a state.
func (m *Member) note(text string) {
	var id uint64
	var alarm string
	if n, _ := fmt.Sscanf(strings.TrimSpace(text), "memberID:%d alarm:%s", &id, &alarm); n == 2 {
		if id == m.id && !slices.Contains(m.Alarms, alarm) {
			m.Alarms = append(m.Alarms, alarm)
		}
		return
	}
	if text == etcd.StateDefragmenting {
		m.State = text
	}
}

// judge finds the leader, and each member's state among the others.
func (s *Status) judge() {
	votes, most := map[uint64]int{}, uint64(0)
	for _, m := range s.Members {
		if m.State != "" && m.knows != 0 {
			votes[m.knows]++
		}
		most = max(most, m.Applied)
	}
	for i := range s.Members {
		m := &s.Members[i]
		switch {
		case m.Error != "":
			m.State = StateSilent
		case m.State != StateOK:
		case m.Learner:
			m.State = StateLearner
		case m.knows == 0:
			m.State = StateLeaderless
		case m.Applied+behind < most:
			m.State = StateBehind
		}
		// A member leads that itself says so, or that does not answer and most others name.
		m.Leader = m.knows == m.id || m.Error != "" && 2*votes[m.id] > len(s.Members)
		if m.Leader {
			s.Leader = m.Name
		}
	}
}

// plain is an error of gRPC without gRPC's own words.
func plain(err error) error {
	if s, ok := status.FromError(err); ok && s.Message() != "" {
		return errors.New(s.Message())
	}
	return err
}

// MoveLeader makes another member the leader: the one with that name, or without a name the
// healthy voter that has applied most. It returns both leaders' names.
func (c *Cluster) MoveLeader(ctx context.Context, name string) (from, to string, err error) {
	s, err := c.Status(ctx)
	if err != nil {
		return "", "", err
	}
	leader := s.leader()
	if leader == nil {
		return "", "", advice.With(errors.New("there is no leader that could hand over"), "kthwd status says whether there is a quorum")
	}
	target, err := s.successor(*leader, name)
	if err != nil {
		return "", "", err
	}
	client, _, err := c.of(*leader)
	if err != nil {
		return "", "", err
	}
	if _, err := client.MoveLeader(ctx, target.id); err != nil {
		return "", "", fmt.Errorf("move the leadership from %s to %s: %w", leader.Name, target.Name, plain(err))
	}
	return leader.Name, target.Name, nil
}

// successor chooses who leads next.
func (s Status) successor(leader Member, name string) (Member, error) {
	if name == "" {
		var best *Member
		for i, m := range s.Members {
			if !m.Leader && m.State == StateOK && !m.Corrupt() && (best == nil || m.Applied > best.Applied) {
				best = &s.Members[i]
			}
		}
		if best == nil {
			return Member{}, advice.With(errors.New("no other member is a healthy voter"), "kthwd etcd status shows the members")
		}
		return *best, nil
	}
	const look = "kthwd etcd status shows the members; the leader did not change"
	m := s.member(name)
	switch {
	case m == nil:
		return Member{}, advice.With(fmt.Errorf("the cluster has no member %q", name), look)
	case m.Leader:
		return Member{}, fmt.Errorf("%s leads already", m.Name)
	case m.Learner:
		return Member{}, advice.With(fmt.Errorf("%s is a learner and cannot lead", m.Name), look)
	case m.Error != "":
		return Member{}, advice.With(fmt.Errorf("%s does not answer: %s", m.Name, m.Error), look)
	case m.Corrupt():
		return Member{}, advice.With(fmt.Errorf("%s has the alarm CORRUPT", m.Name), look)
	case m.State != StateOK:
		return Member{}, advice.With(fmt.Errorf("%s is %s", m.Name, m.State), look)
	}
	return *m, nil
}
