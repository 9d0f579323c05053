package ha

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"kthwd/test/kthwtest"
)

// row is one fault.
type row struct {
	name    string
	fault   string // in the words of the table
	reach   string
	within  time.Duration // what the longest wait of an impatient writer is held to
	run     func(o *round)
	judge   func(o *round) // instead of within
	network bool           // needs a network and a disk for each controller
	relists bool           // no API server goes on that could know what a watcher missed
}

const (
	partition  = 20 * time.Second // longer than a lease
	noBalancer = 10 * time.Second
	stopped    = 30 * time.Second
	longStall  = 20 * time.Second // longer than a lease and a look at it: a shorter one may leave the leases where they were
)

// quorumLost can be made shorter where time is short.
var quorumLost = time.Minute

// rows are in the order of the table.
func rows() []*row {
	return []*row{
		{name: "kill-follower", fault: "kill -9 of a controller that does not lead etcd", reach: "≤ 0.5 s", within: 500 * time.Millisecond,
			run: func(o *round) { o.killed(o.follower()) }},
		{name: "kill-leader", fault: "kill -9 of etcd's leader", reach: "≤ 3 s", within: 3 * time.Second,
			run: func(o *round) { o.killed(o.leader(o.t)) }},
		{name: "cut-follower", fault: "a controller that does not lead etcd is cut off for 20 s", reach: "≤ 3.5 s", within: 3500 * time.Millisecond,
			run: func(o *round) { o.cutOff(o.follower()) }, network: true},
		{name: "cut-leader", fault: "etcd's leader is cut off for 20 s", reach: "≤ 3.5 s", within: 3500 * time.Millisecond,
			run: func(o *round) { o.cutOff(o.leaderOfAll()) }, network: true},
		{name: "cut-balancer", fault: "the balancer does not reach one controller for 10 s", reach: "0 failed new connections",
			run: balancerCutOff, judge: asNoted, network: true},
		{name: "no-quorum", fault: "two of three are down for " + quorumLost.String(), reach: "writes ≤ 5 s after the second is back",
			run: withoutQuorum, judge: asNoted, relists: true},
		{name: "stop", fault: "SIGSTOP of the leading controller for 30 s", reach: "≤ 3.5 s", within: 3500 * time.Millisecond,
			run: stoppedFor},
		{name: "stall-follower", fault: "the disk of a controller that does not lead stalls for 12 s", reach: "process survives",
			run: func(o *round) { o.stalled(o.follower(), 12*time.Second) }, judge: asNoted, network: true},
		{name: "stall-leader", fault: "the disk of the leading controller stalls for 20 s", reach: "process survives; leases move",
			run: stalledLeader, judge: asNoted, network: true},
		{name: "rolling", fault: "rolling restart of all three, 200 requests/s", reach: "0 failed requests, 0 lost events",
			run: rollingRestart, judge: asNoted},
		{name: "disk-full", fault: "the disk of one controller is full", reach: "others serve; it says so, and recovers",
			run: diskFull, judge: asNoted, network: true},
		{name: "kill-all", fault: "kill -9 of all three at once", reach: "nothing lost; serving ≤ 10 s", within: 10 * time.Second,
			run: allKilled, relists: true},
	}
}

// asNoted is for rows that judge themselves.
func asNoted(*round) {}

// follower is one that does not lead etcd.
func (o *round) follower() *machine {
	o.t.Helper()
	all := o.followers(o.t)
	return all[o.random.IntN(len(all))]
}

// leaderOfAll is the one that has the lease of kube-controller-manager, and now
// leads etcd, too: the worst one to lose.
func (o *round) leaderOfAll() *machine {
	o.t.Helper()
	o.readLeases(o.t)
	m := o.byName(o.rig.leases.holder(kcm))
	if m == nil {
		o.t.Fatalf("nobody holds the lease of %s: %q", kcm, o.rig.leases.holder(kcm))
	}
	o.moveLeader(o.t, m)
	o.begun = time.Now()
	return m
}

// hold lets a fault last.
func (o *round) hold(d time.Duration) { sleep(o.t.Context(), d) }

// others are the controllers but for one.
func (o *round) others(m *machine) (all []*machine) {
	for _, c := range o.controllers() {
		if c != m {
			all = append(all, c)
		}
	}
	return all
}

func (o *round) killed(m *machine) {
	o.t.Helper()
	o.note("%s", m.name)
	n := m.count()
	o.begun = time.Now()
	m.kill()
	o.over = time.Now()
	kthwtest.WaitFor(o.t, m.name+" to be started again", soon, func() error {
		if m.count() == n {
			return errors.New("not yet")
		}
		return nil
	})
	o.samePIDAtTheEnd(o.others(m)...)
}

// samePIDAtTheEnd checks the processes once all is well.
func (o *round) samePIDAtTheEnd(machines ...*machine) { o.survivors = machines }

// cutOff unplugs a controller. It says that it has no quorum, and comes back by itself.
func (o *round) cutOff(m *machine) {
	o.t.Helper()
	o.note("%s", m.name)
	o.samePIDAtTheEnd(o.controllers()...)
	o.begun = time.Now()
	o.unplug(o.t, m)
	defer o.plug(o.t, m)
	kthwtest.WaitFor(o.t, m.name+" to say that it has no quorum", partition, func() error { return saysNoQuorum(m) })
	o.note("says so after %s", seconds(time.Since(o.begun)))
	o.hold(time.Until(o.begun.Add(partition)))
	if err := saysNoQuorum(m); err != nil {
		o.fault("%s, cut off: %v", m.name, err)
	}
	o.over = time.Now()
}

// saysNoQuorum is nil when a controller reports that it waits for a quorum.
func saysNoQuorum(m *machine) error {
	r, err := m.status()
	if err != nil {
		return err
	}
	if r.Ready || r.Quorum == nil || !strings.HasPrefix(r.Quorum.Note, "waiting for etcd quorum (1 of 3)") {
		return fmt.Errorf("ready %v, reason %q, quorum %+v", r.Ready, r.Reason, r.Quorum)
	}
	return nil
}

func balancerCutOff(o *round) {
	m := o.controllers()[o.random.IntN(controllerCount)]
	o.note("%s", m.name)
	o.samePIDAtTheEnd(o.controllers()...)
	probes := o.newConnections()
	o.begun = time.Now()
	o.separate(o.t, o.balancer(), m)
	healed := false
	heal := func() {
		if !healed {
			healed = true
			o.join(o.t, o.balancer(), m)
		}
	}
	defer heal()
	o.hold(noBalancer)
	heal()
	o.over = time.Now()
	o.hold(2 * time.Second)
	probes.none(o, "new connections", int((noBalancer+time.Second)/time.Second)*probeRate)
}

// withoutQuorum takes two controllers away, etcd's leader among them or not.
func withoutQuorum(o *round) {
	order := o.random.Perm(controllerCount)
	survivor, second, third := o.machines[order[0]], o.machines[order[1]], o.machines[order[2]]
	o.note("%s survives", survivor.name)
	o.samePIDAtTheEnd(survivor)
	defer second.on()
	defer third.on()
	o.begun = time.Now()
	second.powerOff()
	third.powerOff()
	kthwtest.WaitFor(o.t, survivor.name+" to say that it has no quorum", soon, func() error { return saysNoQuorum(survivor) })
	o.hold(time.Until(o.begun.Add(quorumLost)))
	if err := saysNoQuorum(survivor); err != nil {
		o.fault("%s: %v", survivor.name, err)
	}
	back := time.Now()
	second.on()
	var first time.Time
	kthwtest.WaitFor(o.t, "writes with two of three", soon, func() error {
		if acks := o.clients.since(back); len(acks) > 0 {
			first = acks[0].At
			return nil
		}
		return errors.New("none yet")
	})
	o.reach(first.Sub(back), 5*time.Second)
	third.on()
	o.over = time.Now()
}

func stoppedFor(o *round) {
	m := o.leaderOfAll()
	o.note("%s", m.name)
	o.samePIDAtTheEnd(o.controllers()...)
	defer m.signal(syscall.SIGCONT)
	o.begun = time.Now()
	m.signal(syscall.SIGSTOP)
	o.hold(stopped)
	m.signal(syscall.SIGCONT)
	o.over = time.Now()
}

func (o *round) stalled(m *machine, d time.Duration) {
	o.t.Helper()
	o.note("%s", m.name)
	o.samePIDAtTheEnd(o.controllers()...)
	defer m.disk.Thaw()
	o.begun = time.Now()
	m.disk.Stall(o.t)
	o.hold(d)
	m.disk.Thaw()
	o.over = time.Now()
	o.result.Measured = "survived"
}

func stalledLeader(o *round) {
	m := o.leaderOfAll()
	o.stalled(m, longStall)
	o.readLeases(o.t)
	holder := o.rig.leases.holder(kcm)
	o.note("%s's lease: %s", kcm, holder)
	if holder == m.name {
		o.missed(false, "%s still holds the lease of %s after its disk stalled", m.name, kcm)
	} else {
		o.result.Measured += ", moved"
	}
}

func rollingRestart(o *round) {
	load := o.apiLoad(o.t)
	o.hold(time.Second)
	o.begun = time.Now()
	for _, m := range o.controllers() {
		o.restart(m)
	}
	o.hold(time.Second)
	load.none(o, "requests", loadRate*5)
}

// restart waits until all are ready again.
func (o *round) restart(m *machine) {
	o.t.Helper()
	n := m.count()
	m.signal(syscall.SIGTERM)
	begun := time.Now()
	kthwtest.WaitFor(o.t, m.name+" to be restarted and all to be ready", recovery, func() error {
		if m.count() == n {
			return errors.New(m.name + " runs still")
		}
		return o.allReady()
	})
	if end := m.lastExit(); end.Code != 0 {
		o.fault("%s: exit code %d after SIGTERM, want 0", m.name, end.Code)
	} else {
		o.note("%s stopped in %s, all ready in %s", m.name, seconds(end.At.Sub(begun)), seconds(time.Since(begun)))
	}
}

func allKilled(o *round) {
	o.begun = time.Now()
	for _, m := range o.controllers() {
		m.kill()
	}
	o.over = time.Now()
	var first time.Time
	kthwtest.WaitFor(o.t, "writes again", recovery, func() error {
		if acks := o.clients.since(o.over.Add(100 * time.Millisecond)); len(acks) > 0 {
			first = acks[0].At
			return nil
		}
		return errors.New("none yet")
	})
	o.note("first write after %s", seconds(first.Sub(o.begun)))
}
