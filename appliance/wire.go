package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"kthwd/appliance/apiserver"
	"kthwd/appliance/controllers"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcdca"
	"kthwd/appliance/lease"
	"kthwd/appliance/liveness"
	"kthwd/appliance/membership"
	"kthwd/appliance/others"
	"kthwd/appliance/program"
	"kthwd/appliance/readers"
	"kthwd/appliance/sharedfiles"
	"kthwd/appliance/supervise"
	"kthwd/appliance/users"
	"kthwd/health"
	"kthwd/rbacseed"
)

// Stop budgets: the longest time from a component's cancellation to its return.
// They add up along the chain to about 45 s, the bound of every stop by default.
const (
	stopControllers = 12 * time.Second // upstream gives its controllers 10 s (--controller-shutdown-timeout), and then says which remain
	stopAPIServer   = 15 * time.Second // drain of short requests and watches, removal from Endpoints; and the shutdown delay
	stopEtcd        = 10 * time.Second // 5 s + 2 elections for its clients, then the transfer of leadership
	stopBridges     = 5 * time.Second
)

// components are those of a controller, before they are in a group.
type components struct {
	status    supervise.Component
	bridge    *health.Bridge // nil if it is switched off
	member    *etcd.Member
	members   *membership.Members
	api       *apiserver.Server
	seed      *rbacseed.Seed
	manager   *controllers.Manager
	scheduler *controllers.Scheduler

	managerPause, schedulerPause *lease.Pause
}

// wire makes the components and adds them to a group.
func (p *wiring) wire() (*supervise.Group, *liveness.Probe, error) {
	g := supervise.New(p.log)
	c, err := p.newComponents(g)
	if err != nil {
		return nil, nil, err
	}
	p.add(g, c)
	return g, liveness.New(g, c.member, c.api), nil
}

// newComponents makes the components, and all that runs beside them.
func (p *wiring) newComponents(g *supervise.Group) (c *components, err error) {
	c = &components{managerPause: &lease.Pause{}, schedulerPause: &lease.Pause{}}
	fences := lease.NewFences(p.Config.LocalServer())
	p.drift, p.tokens, p.machine = p.newDrift(), p.newTokenKeys(), p.newObserve()
	p.shared = &sharedfiles.Files{Layout: p.Layout, InUse: p.usesShared, Replaced: p.machine.Replaced}
	p.observers = append(p.observers, p.drift, p.tokens, p.webClients())
	if c.member, err = p.newEtcd(func() { c.api.Begin() }); err != nil {
		return nil, err
	}
	p.live, p.readers = p.newLive(), readers.New()
	p.newChanges(c)
	c.api = p.newAPIServer(c.member, fences)
	p.observers = append(p.observers, c.api)
	c.member.OnClose(p.readers.Stop)
	c.member.OnAbsence(func(ctx context.Context) (func(), error) {
		return beAbsent(ctx, c.api, c.schedulerPause, c.managerPause)
	})
	c.manager = controllers.NewManager(p.controllersConfig(g, program.ControllerManager, &fences.ControllerManager, c.managerPause), p.Programs.Manager)
	c.scheduler = controllers.NewScheduler(p.controllersConfig(g, program.Scheduler, &fences.Scheduler, c.schedulerPause), p.Programs.Scheduler, p.Programs.Settings)
	p.observers = append(p.observers, c.members, p.mover, p.rotations.Gate)
	p.agree = p.newAgree(c.member)
	c.seed, c.bridge = p.newSeed(c.api), p.newHealth(g)
	c.status = p.newStatus(g, c, p.newCollectors(c))
	return c, nil
}

// newChanges makes the parts that change the cluster at a person's word: its members, workers, users,
// versions, keys and CAs. They reach the API server when it has started.
func (p *wiring) newChanges(c *components) {
	loopback := func() (*rest.Config, error) { return c.api.Loopback() }
	p.upgrade = p.newUpgrade(c.member)
	p.observers = append(p.observers, p.upgrade)
	p.workers = p.newWorkers(c.member, loopback)
	c.members = p.newMembers(c.member)
	p.mover = etcdca.New(etcdca.Config{Name: p.Config.Name, Layout: p.Layout, Etcd: c.member, Log: p.o.Logs.Logger(program.Etcd)})
	p.others = others.New(c.member, p.log)
	p.rotations = p.newRotations(c, loopback)
	p.users = users.New(users.Config{Etcd: c.member.Running, Log: p.o.Logs.Logger("kthwd")})
}

// add adds the components to a group. They stop in the reverse order of this list.
func (p *wiring) add(g *supervise.Group, c *components) {
	bridges := []*supervise.Node{g.Add(c.status).StopWithin(stopBridges)}
	if c.bridge != nil {
		bridges = append(bridges, g.Add(c.bridge).StopWithin(stopBridges))
	}
	if p.o.ExtraRole != nil {
		p.o.ExtraRole.Add(g, bridges[0])
	}
	etcdNode := g.Add(c.member, bridges...).StopWithin(stopEtcd)
	g.Add(c.members, etcdNode).StopWithin(stopBridges)
	// The ports open at once, and close after the API server, whose componentstatuses ask them; the
	// programs behind them wait for the API server.
	managerPort := g.Add(c.manager.Port(), bridges...).StopWithin(stopBridges)
	schedulerPort := g.Add(c.scheduler.Port(), bridges...).StopWithin(stopBridges)
	apiNode := g.Add(c.api, etcdNode, managerPort, schedulerPort).StopWithin(stopAPIServer + p.shutdownDelay())
	g.Add(c.seed, apiNode)
	g.Add(c.manager, apiNode).StopWithin(stopControllers)
	g.Add(c.scheduler, apiNode).StopWithin(stopControllers)
}

// newCollectors makes the watchers, and returns all that has metrics.
func (p *wiring) newCollectors(c *components) []prometheus.Collector {
	all := append(p.newWatchers(c.member, c.api, c.seed), c.members, p.tokens, p.rotations.Gate)
	for _, r := range p.rotations.All() {
		p.observers, all = append(p.observers, r), append(all, r)
	}
	all = append(all, c.seed.Collector())
	if c.bridge != nil {
		all = append(all, c.bridge.Collector())
	}
	return all
}

// beAbsent makes the other controllers do the work of this one while its etcd defragments:
// they take the leases, and the clients of the API server. back ends it.
func beAbsent(ctx context.Context, api *apiserver.Server, pauses ...*lease.Pause) (back func(), err error) {
	bounded, cancel := context.WithTimeout(ctx, lease.GivingUp)
	defer cancel()
	errs := make([]error, len(pauses))
	var all sync.WaitGroup
	for i, p := range pauses {
		all.Go(func() { errs[i] = p.Begin(bounded, "while etcd defragments") })
	}
	all.Wait()
	end := func() {
		for _, p := range pauses {
			p.End()
		}
	}
	if err := errors.Join(errs...); err != nil {
		return end, fmt.Errorf("the leases are not given up: %w", err)
	}
	serve, err := api.BeAbsent(ctx)
	return func() { serve(); end() }, err
}
