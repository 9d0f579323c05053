package members

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"kthwd/appliance/advice"
	"kthwd/appliance/member"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/test/harness"
)

// TestCuts cuts single directions and pairs between three controllers. What raft does is what
// status and the verbs say, whichever connections are left, and nobody is told to give a
// quorum up that the others have.
func TestCuts(t *testing.T) {
	if !requireNetwork(t) {
		return
	}
	c := newCluster(t, 3)
	start(t, c.machines...)
	for _, m := range c.machines {
		m.ready(t)
	}
	c0, c1, c2 := c.machines[0], c.machines[1], c.machines[2]
	t.Run("two followers", func(t *testing.T) { followersApart(t, c, c0, c1, c2) })
	t.Run("a follower, from the leader", func(t *testing.T) { leaderApart(t, c, c0, c1, c2) })
	t.Run("one, from all", func(t *testing.T) { oneApart(t, c, c0, c1, c2) })
	t.Run("all, towards the leader", func(t *testing.T) { leaderUnheard(t, c, c0, c1, c2) })
}

// followersApart cuts both directions between two followers: the leader hears both.
func followersApart(t *testing.T, c *cluster, c0, c1, c2 *machine) {
	c.moveLeader(t, c2)
	shut(t, c0, c1)
	shut(t, c1, c0)
	for m, other := range map[*machine]*machine{c0: c1, c1: c0} {
		want := fmt.Sprintf("%s does not hear %s, but %s takes part in the quorum that c2 leads", m.name, other.name, other.name)
		m.says(t, want, func(r status.Report) bool {
			return finding(r, "peer_cut").Text == want && r.Ready && r.Quorum.Active == 3 && r.Health == status.Degraded
		})
		m.lists(t, "c0 up, c1 up, c2 up")
	}
	open(t, c0, c1)
	open(t, c1, c0)
	c.whole(t)
}

// leaderApart cuts all ports between a follower and the leader: the other follower, which it
// reaches, says where the quorum is.
func leaderApart(t *testing.T, c *cluster, c0, c1, c2 *machine) {
	c.moveLeader(t, c2)
	part(t, c0, c2)
	const want = "c0 is cut off from etcd's quorum, which the others have, with the leader c2"
	harness.WaitFor(t, "c0 to be cut off from the quorum of a leader that does not answer it", soon, func() error {
		all, err := c0.client().Cluster(t.Context())
		if err != nil {
			return err
		}
		said, unanswered := "", false
		for _, o := range all.Controllers {
			unanswered = unanswered || o.Name == "c2" && o.Error != ""
			for _, f := range o.Findings {
				if o.Here && f.Kind == "quorum" {
					said = f.Text + "; " + f.Do
				}
			}
		}
		if !unanswered || !strings.HasPrefix(said, want) || strings.Contains(said, "recover") {
			return fmt.Errorf("c2 unanswered %v: got %s", unanswered, said)
		}
		return nil
	})
	meet(t, c0, c2)
	c.whole(t)
}

// oneApart cuts all of etcd's connections of one controller: the others have the quorum, and
// it says so.
func oneApart(t *testing.T, c *cluster, c0, c1, c2 *machine) {
	shut(t, c0, c1, c2)
	shut(t, c1, c0)
	shut(t, c2, c0)
	c0.says(t, "cut off from the others' quorum", func(r status.Report) bool {
		f := finding(r, "quorum")
		return f.Health == status.Down && strings.Contains(f.Text, "c0 is cut off from etcd's quorum, which the others have, with the leader c")
	})
	if r, err := c0.status(t.Context()); err != nil || strings.Contains(digest(r), "recover") {
		t.Errorf("the others have a quorum: got %s (%v)", digest(r), err)
	}
	err := c0.remove(t.Context(), "c1")
	hint, _ := advice.Of(err)
	if err == nil || !strings.Contains(err.Error(), "cut off from the others, which have a quorum") || strings.Contains(hint, "recover") {
		t.Errorf("a removal there: got %v, hint %q", err, hint)
	}
	open(t, c0, c1, c2)
	open(t, c1, c0)
	open(t, c2, c0)
	c.whole(t)
}

// leaderUnheard drops what arrives at the leader's peer port, and then kills the one that is
// not needed: the quorum goes on over the connections that the leader opens, and the killed
// one can be removed from the one that does not hear the leader.
func leaderUnheard(t *testing.T, c *cluster, c0, c1, c2 *machine) {
	shut(t, c2, c0, c1)
	// The kernel has to give up the connections that were there: until then the messages of one
	// direction are lost, and another one may lead for a while.
	harness.WaitFor(t, "c2 to lead, unheard", 2*soon, func() error {
		c.moveLeader(t, c2)
		for _, m := range []*machine{c0, c1} {
			r, err := m.status(t.Context())
			if err != nil {
				return err
			}
			want := m.name + " does not hear c2, but c2 leads and commits"
			if finding(r, "peer_cut").Text != want || !r.Ready || r.Quorum.Active != 3 || r.Quorum.Leader != "c2" {
				return fmt.Errorf("%s: got %s", m.name, digest(r))
			}
		}
		return nil
	})
	c1.process.Signal(t, syscall.SIGKILL)
	c0.says(t, "c1 is away, and nothing else", func(r status.Report) bool {
		return strings.HasPrefix(finding(r, "member").Text, "c1 cannot be reached: 2 of 3 etcd members") && finding(r, "quorum") == status.Finding{} &&
			r.Ready && r.Quorum.Leader == "c2" && r.Quorum.Seen == "c2" && !strings.Contains(digest(r), "recover")
	})
	c0.write(t)
	c0.lists(t, "c0 up, c1 down, c2 up")
	if err := c0.remove(t.Context(), "c1"); err != nil {
		hint, _ := advice.Of(err)
		t.Fatalf("the removal of the dead one: %v, hint %q", err, hint)
	}
	c0.lists(t, "c0 up, c2 up")
	c0.write(t)
}

// whole waits until all say that all take part.
func (c *cluster) whole(t *testing.T) {
	t.Helper()
	for _, m := range c.machines {
		m.says(t, "all take part", func(r status.Report) bool {
			return r.Ready && r.Quorum.Active == len(c.machines) && r.Quorum.Leader != "" && !r.Quorum.Silent
		})
	}
}

// etcd is a client of the member through its socket.
func (m *machine) etcd(t testing.TB) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + pki.Layout{Dir: m.dir}.EtcdSocket()}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{grpc.WithAuthority("localhost")}})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// write waits for a write through the controller.
func (m *machine) write(t testing.TB) {
	t.Helper()
	client := m.etcd(t)
	defer client.Close()
	harness.WaitFor(t, "a write through "+m.name, soon, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := client.Put(ctx, "/test", m.name)
		return err
	})
}

// moveLeader makes a controller etcd's leader.
func (c *cluster) moveLeader(t testing.TB, to *machine) {
	t.Helper()
	harness.WaitFor(t, to.name+" to lead", soon, func() error {
		r, err := to.status(t.Context())
		if err != nil || r.Quorum.Leader == to.name {
			return err
		}
		for _, m := range c.machines {
			if m.name == r.Quorum.Leader {
				return m.giveLead(t, to)
			}
		}
		return errors.New("nobody leads")
	})
}

func (m *machine) giveLead(t testing.TB, to *machine) error {
	client := m.etcd(t)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	all, err := client.MemberList(ctx)
	if err != nil {
		return err
	}
	for _, e := range all.Members {
		if e.Name == to.name {
			if _, err := client.MoveLeader(ctx, e.ID); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%s led", m.name)
}

// lists waits until the controller lists these members.
func (m *machine) lists(t *testing.T, want string) {
	t.Helper()
	harness.WaitFor(t, m.name+" to list "+want, soon, func() error {
		l, err := m.list(t.Context())
		if err != nil {
			return err
		}
		var all []string
		for _, e := range l.Members {
			all = append(all, e.Name+" "+map[bool]string{true: "up", false: "down"}[e.Up])
		}
		if got := strings.Join(all, ", "); got != want {
			return fmt.Errorf("got %s, as %s sees it", got, l.Seen)
		}
		return nil
	})
}

// remove is kthwd member remove on the controller.
func (m *machine) remove(ctx context.Context, name string) error {
	return m.client().Do(ctx, http.MethodDelete, "/members/"+name, nil, &member.Member{})
}
