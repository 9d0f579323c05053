package appliance

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/server/v3/embed"
	rbacclient "k8s.io/client-go/kubernetes/typed/rbac/v1"

	"kthwd/appliance/advice"
	"kthwd/appliance/apiserver"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/controllers"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/lease"
	"kthwd/appliance/membership"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/health"
	"kthwd/rbacseed"
)

// Stop budgets: the longest time from a component's cancellation to its return.
// They add up along the chain to about 43 s, the bound of every stop by default.
const (
	stopControllers = 10 * time.Second // upstream's own --controller-shutdown-timeout
	stopAPIServer   = 15 * time.Second // drain of short requests and watches, removal from Endpoints; and the shutdown delay
	stopEtcd        = 10 * time.Second // 5 s + 2 elections for its clients, then the hand-over
	stopBridges     = etcd.StopBridges
)

// wire puts the components together. Stops run from the bottom of this list to
// its top.
func (p *prepared) wire() (*supervise.Group, *Pulse, error) {
	logs := p.o.Logs
	etcdMember, err := etcd.New(p.args[program.Etcd], logs.Logger(program.Etcd))
	if err != nil {
		return nil, nil, advice.Usage(err)
	}
	etcdMember.Admit = func(ctx context.Context, server *embed.Etcd) error {
		err := (&membership.SharedFiles{Layout: p.layout, InUse: p.usesShared}).Check(ctx, server, etcdMember.Sharers(), etcdMember.Log)
		if err == nil {
			membership.Arrive(ctx, server)
		}
		return err
	}
	etcdMember.Counted = p.remember
	before, _ := etcdfiles.ReadRecord(p.layout) // guard has looked at it
	etcdMember.HadQuorum.Store(before != nil)
	g := supervise.New(p.log)
	leased := lease.NewFences(p.cfg.LocalServer())
	api := &apiserver.Server{
		Args: cmdline.WithoutGates(p.args[program.APIServer]), Server: p.cfg.LocalServer(),
		Layout: p.layout, Etcd: etcdMember, Fences: leased, Log: logs.Logger(program.APIServer),
	}
	api.UsersDelay = slices.ContainsFunc(program.ParseUser(p.cfg.APIServerArgs), func(a program.Arg) bool { return a.Key == program.KeyShutdownDelay })
	delay, _ := time.ParseDuration(program.Value(p.args[program.APIServer], program.KeyShutdownDelay)) // upstream's parser has had it already
	switch {
	case p.hadOthers():
		etcdMember.Steady()
	case etcd.Alone(etcdMember.Cfg):
		etcdMember.Open = api.Begin
	}
	kcm := &controllers.Manager{
		Args: cmdline.WithoutGates(p.args[program.ControllerManager]), Options: p.programs.kcm, Identity: p.identity, Fence: &leased.ControllerManager,
		Record: lease.NewRecord(program.ControllerManager, p.identity), Alive: controllers.Alive(g, program.ControllerManager), Logs: logs, Log: logs.Logger(program.ControllerManager),
	}
	sched := &controllers.Scheduler{
		Args: cmdline.WithoutGates(p.args[program.Scheduler]), Options: p.programs.sched, Settings: p.programs.settings, Identity: p.identity, Fence: &leased.Scheduler,
		Record: lease.NewRecord(program.Scheduler, p.identity), Alive: controllers.Alive(g, program.Scheduler), Logs: logs, Log: logs.Logger(program.Scheduler),
	}

	members := membership.New(membership.Members{
		Etcd: etcdMember, Cfg: p.cfg, Layout: p.layout, Version: p.o.Version, Prefix: p.storagePrefix(), Log: logs.Logger(membership.Name),
	})

	seed := p.newSeed(api)
	collectors := []prometheus.Collector{seed.Collector()}
	var bridge *health.Bridge
	if p.cfg.HealthAddress != "" {
		bridge = p.newHealth(g)
		collectors = append(collectors, bridge.Collector())
	}
	bridges := []*supervise.Node{g.Add(p.newStatus(g, etcdMember, members, api, []*lease.Record{kcm.Record, sched.Record}, collectors...)).StopWithin(stopBridges)}
	if bridge != nil {
		bridges = append(bridges, g.Add(bridge).StopWithin(stopBridges))
	}
	if p.o.Beside != nil {
		p.o.Beside.Add(g, bridges[0])
	}
	etcdNode := g.Add(etcdMember, bridges...).StopWithin(stopEtcd)
	g.Add(members, etcdNode).StopWithin(stopBridges)
	apiNode := g.Add(api, etcdNode).StopWithin(stopAPIServer + delay)
	g.Add(seed, apiNode)
	// The ports open at once; the programs behind them wait for the API server.
	kcmPort := g.Add(kcm.Port(), bridges...).StopWithin(stopBridges)
	schedPort := g.Add(sched.Port(), bridges...).StopWithin(stopBridges)
	g.Add(kcm, apiNode, kcmPort).StopWithin(stopControllers)
	g.Add(sched, apiNode, schedPort).StopWithin(stopControllers)
	return g, &Pulse{group: g, etcd: etcdMember, api: api}, nil
}

// hadOthers tells whether the member was one of several when this directory was
// last in use.
func (p *prepared) hadOthers() bool {
	r, err := etcdfiles.ReadRecord(p.layout)
	return err == nil && r != nil && r.Members > 1
}

func (p *prepared) newHealth(g *supervise.Group) *health.Bridge {
	return health.New(health.Config{
		Address:    p.cfg.HealthAddress,
		ServerName: p.cfg.HealthServerName,
		Target:     p.cfg.LocalServer(),
		CAFile:     p.layout.CA(),
		CertFile:   p.layout.Cert(pki.NameHealth),
		KeyFile:    p.layout.Key(pki.NameHealth),
		Local:      g.Ready,
		Components: func() []health.Check { return checks(g) },
		Log:        p.o.Logs.Logger("health"),
	})
}

// checks is the state record as the bridge's ?verbose shows it.
func checks(g *supervise.Group) []health.Check {
	var all []health.Check
	for _, s := range g.Status() {
		reason := s.Reason
		if reason == "" {
			reason = string(s.State)
		}
		all = append(all, health.Check{Name: s.Name, OK: s.Healthy(), Reason: reason})
	}
	return all
}

// newSeed binds the role to the user in the certificate that the API server
// shows to kubelets.
func (p *prepared) newSeed(api *apiserver.Server) *rbacseed.Seed {
	return rbacseed.New(rbacseed.Config{
		User: kubeletClientUser(program.Value(p.args[program.APIServer], "kubelet-client-certificate")),
		Client: func() (rbacclient.RbacV1Interface, error) {
			loopback, err := api.Loopback()
			if err != nil {
				return nil, err
			}
			return rbacclient.NewForConfig(loopback)
		},
		Log: p.o.Logs.Logger("rbac-seed"),
	})
}

// kubeletClientUser is the common name in the certificate that the API server
// shows to kubelets; "kubernetes", as in the guide, when it cannot be read.
func kubeletClientUser(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return pki.NameKubernetes
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return pki.NameKubernetes
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || cert.Subject.CommonName == "" {
		return pki.NameKubernetes
	}
	return cert.Subject.CommonName
}
