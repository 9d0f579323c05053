package upgrade

import (
	"strings"
	"testing"

	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/etcdspace"
	"kthwd/appliance/status"
)

var (
	before = etcdfiles.Ran{Kthwd: "v0.2.0", Kubernetes: "v1.36.3", Etcd: "3.6.16"}
	after  = etcdfiles.Ran{Kthwd: "v0.3.0", Kubernetes: "v1.37.2", Etcd: "3.7.3"}
)

// member is one controller of a test: its versions, and the rest as it is in most of them.
type member struct {
	is       etcdfiles.Ran
	emulated string
	next     string
	storage  string
	mayBack  bool
	away     string
	unready  bool
}

var (
	oldOne   = member{is: before, storage: "3.6.0"}
	rolling  = member{is: after, emulated: "1.36", next: "1.36", storage: "3.6.0", mayBack: true}
	reached  = member{is: after, emulated: "1.36", next: "1.36", storage: "3.7.0"}
	restart  = member{is: after, emulated: "1.36", storage: "3.7.0"}
	finished = member{is: after, storage: "3.7.0"}
)

func (m member) but(change func(*member)) member { change(&m); return m }

// see makes the view of a cluster.
func see(s State, target string, all ...member) View {
	members, cluster := etcdspace.Status{Cluster: "cc", Leader: "c0"}, status.Cluster{}
	for i, m := range all {
		name := "c" + string(rune('0'+i))
		e := etcdspace.Member{Name: name, ID: name, Here: i == 0, Version: m.is.Etcd, Storage: m.storage, Target: target}
		c := status.Controller{Name: name, Version: m.is.Kthwd, Kubernetes: m.is.Kubernetes, Etcd: m.is.Etcd, Health: status.Healthy, Ready: !m.unready, Reason: "waits"}
		if m.away != "" {
			e, c.Error = etcdspace.Member{Name: name, ID: name, Error: m.away}, m.away
		}
		if m.is == after {
			c.Upgrade = &status.Upgrade{Emulated: m.emulated, Next: m.next, Kthwd: before.Kthwd, Kube: before.Kubernetes, Etcd: after.Etcd}
			if m.mayBack {
				c.Upgrade.Etcd = "3.6.0"
			}
		}
		members.Members, cluster.Controllers = append(members.Members, e), append(cluster.Controllers, c)
	}
	return viewOf(s, members, cluster)
}

var open = State{Cluster: "cc", From: before, To: after}

func silent(m member) member { return m.but(func(m *member) { m.away = "connection refused" }) }

// unwritten is v after the first controller could not write its record.
func unwritten(v View) View {
	v.Controllers[0].Unwritten = "no space left on device"
	return v
}

func TestJudge(t *testing.T) {
	ended := open
	ended.Finished = true
	noQuorum := see(open, "3.6.0", reached, silent(reached), silent(reached))
	noQuorum.Leaderless = true
	ready := reached.but(func(m *member) { m.mayBack, m.storage = true, "3.6.0" })
	away := reached.but(func(m *member) { m.away = "connection refused" })
	for _, tt := range []struct {
		name         string
		v            View
		stage        Stage
		finish, back string // parts of the refusals; "" if it may be done
		next         string
	}{
		{"nothing", see(State{}, "", finished, finished), StageNone, "no upgrade", "no upgrade", ""},
		{"the first", see(open, "", rolling, oldOne, oldOne), StageRolling, "c1 is still on Kubernetes v1.36.3", "", "upgrade c1, then c2"},
		{"the first back", see(open, "", rolling, oldOne, oldOne), StageRolling, "c2 is still", "", "run the old kthwd again on c0"},
		{"all", see(open, "", reached, reached, reached), StageReached, "", "", "kthwd upgrade finish"},
		{"etcd not yet", see(open, "", reached, rolling), StageReached, "etcd of c1 still has the storage version 3.6.0", "", "kthwd upgrade finish"},
		{"one away", see(open, "", reached, away), StageReached, "c1 does not answer: connection refused", "c1 does not answer", "start c1 again"},
		{"one not ready", see(open, "", reached, reached.but(func(m *member) { m.unready = true })), StageReached, "c1 is not ready: waits", "c1 is not ready", ""},
		{"another patch", see(open, "", reached, reached.but(func(m *member) { m.is.Kubernetes = "v1.37.3" })), StageReached, "c1 has kthwd v0.3.0, Kubernetes v1.37.3", "", ""},
		{"back begun", see(open, "3.6.0", reached, ready), StageBack, "a way back to etcd 3.6 is under way", "", "waits for c0"},
		{"back ready", see(open, "3.6.0", ready, ready), StageBack, "--cancel", "", "run the old kthwd again on c0, then c1"},
		{"back without a quorum", noQuorum, StageBack, "a way back", "etcd has no leader", "etcd has no leader: start c1 and c2 again"},
		{"no room for a record", unwritten(see(open, "", reached)), StageReached, "", "", "c0 cannot write member.json: no space left on device: free room on its disk"},
		{"back half", see(open, "3.6.0", ready, oldOne), StageReturning, "a way back", "", "run the old kthwd again on c0"},
		{"back done", see(open, "", oldOne, oldOne), StageNone, "no upgrade", "no upgrade", ""},
		{"finished", see(ended, "", restart, finished), StageFinishing, "", ErrFinished.Error(), "restart c0, each"},
		{"finished and restarted", see(ended, "", finished, finished), StageNone, "", ErrFinished.Error(), ""},
		{"finished without one", see(ended, "", finished, oldOne), StageFinishing, "", ErrFinished.Error(), "finished without c1: run the new kthwd there"},
		{"finished, one away", see(ended, "", finished, away), StageNone, "", ErrFinished.Error(), "c1: start the new kthwd there (Kubernetes 1.37)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.v.Judge(); got != tt.stage {
				t.Errorf("stage: got %s, want %s", got, tt.stage)
			}
			refused(t, "finish", tt.v.MayFinish(), tt.finish)
			refused(t, "back", tt.v.MayGoBack(), tt.back)
			if got := strings.Join(tt.v.Next(), "\n"); !strings.Contains(got, tt.next) || tt.next == "" && tt.stage == StageNone && got != "" {
				t.Errorf("next: got %q, want %q", got, tt.next)
			}
		})
	}
}

func refused(t *testing.T, verb string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: refused: %v", verb, err)
	case want != "" && err == nil:
		t.Errorf("%s: allowed, want %q", verb, want)
	case want != "" && !strings.Contains(err.Error(), want):
		if e, ok := err.(interface{ Hint() string }); !ok || !strings.Contains(e.Hint(), want) {
			t.Errorf("%s: got %v, want %q", verb, err, want)
		}
	}
}

func TestEmulated(t *testing.T) {
	for value, want := range map[string]string{"": "", "1.36": "1.36", "v1.36": "1.36", "kube=1.36": "1.36", "other=1.2,kube=1.35": "1.35", "other=1.2": ""} {
		if got := emulated(value); got != want {
			t.Errorf("%q: got %q, want %q", value, got, want)
		}
	}
}
