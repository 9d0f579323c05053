package upgrade

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/etcd/api/v3/version"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/test/etcdtest"
	"kthwd/test/harness"
)

// etcd is told to go on only when the record of the controller refuses the old kthwd, and the next
// way back lets it in again.
func TestCancelRefusesTheOldOneFirst(t *testing.T) {
	server := etcdtest.Start(t, false)
	client := etcdtest.Client(t, server)
	is := semver.Must(semver.NewVersion(version.Version))
	older := fmt.Sprintf("%d.%d", is.Major, is.Minor-1)
	s := open
	s.From.Etcd, s.To.Etcd = older+".0", version.Version
	if err := s.save(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	harness.WaitFor(t, "etcd's downgrade to be enabled", time.Minute, func() error {
		_, err := client.Downgrade(t.Context(), clientv3.DowngradeEnable, older)
		return err
	})
	state := func() State {
		s, err := ReadState(t.Context(), client, open.Cluster)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	looks := 0 // with the way back given up: the controller's record follows later
	r := Returner{Client: client, Say: func(step, text string) { t.Log(step, text) }}
	r.Look = func(context.Context) (View, error) {
		s, target := state(), ""
		if d := server.Server.DowngradeInfo(); d.Enabled {
			target = d.TargetVersion
		}
		if s.Onward {
			looks++
		}
		noted := s.Onward && looks > 2
		if target == "" && !noted {
			t.Error("etcd is told to go on, and the old kthwd may run")
		}
		return see(s, target, rolling.but(func(m *member) { m.mayBack = !noted })), nil
	}
	if err := r.Cancel(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !state().Onward || server.Server.DowngradeInfo().Enabled {
		t.Errorf("after the cancellation: %+v, %+v", state(), server.Server.DowngradeInfo())
	}
	r.Look = func(context.Context) (View, error) { return see(state(), "", rolling, oldOne), nil }
	if err := r.Back(t.Context()); err != nil || state().Onward {
		t.Errorf("the next way back: %v, %+v", err, state())
	}
}

// Without a leader the cancellation ends with the cause.
func TestCancelWithoutLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, looks := time.Now(), 0
		r := Returner{Say: func(string, string) {}, Look: func(context.Context) (View, error) {
			v := see(State{}, "3.6.0", reached, silent(reached))
			v.Leaderless = looks > 0
			looks++
			return v, nil
		}}
		err := r.Cancel(t.Context())
		do, _ := advice.Of(err)
		if err == nil || !strings.Contains(err.Error(), "etcd has no leader") || !strings.Contains(err.Error(), "c1 does not answer") || !strings.Contains(do, tryCancel) {
			t.Errorf("got %v, %q", err, do)
		}
		if took := time.Since(begun); took > cancelWithin {
			t.Errorf("it took %v", took)
		}
	})
}
