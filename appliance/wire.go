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

	"kthwd/appliance/pki"
	"kthwd/appliance/supervise"
	"kthwd/health"
	"kthwd/rbacseed"
)

const stopControllers = 10 * time.Second // upstream's own --controller-shutdown-timeout

const stopAPIServer = 15 * time.Second // drain of short requests and watches, removal from Endpoints; and the shutdown delay

const stopEtcd = 10 * time.Second // 5 s + 2 elections for its clients, then the hand-over

// wire puts the components together. Stops run from the bottom of this list to
// its top.
func (p *plant) wire() (*supervise.Group, *Pulse, error) {
	logs := p.o.Logs
	etcd, err := newEtcd(p.args[nameEtcd], logs.Logger(nameEtcd))
	if err != nil {
		return nil, nil, asUsage(err)
	}
	etcd.admit = func(ctx context.Context, server *embed.Etcd) error {
		err := (&sharedFiles{layout: p.layout, inUse: p.usesShared}).check(ctx, server, etcd.sharers(), etcd.log)
		if err == nil {
			arrive(ctx, server)
		}
		return err
	}
	etcd.counted = p.remember
	before, _ := readRecord(p.layout) // guard has looked at it
	etcd.once.Store(before != nil)
	g := supervise.New(p.log)
	leased := newFences(p.cfg.LocalServer())
	api := &apiServer{
		args: withoutGates(p.args[nameAPIServer]), server: p.cfg.LocalServer(),
		layout: p.layout, etcd: etcd, fences: leased, log: logs.Logger(nameAPIServer),
	}
	api.usersDelay = slices.ContainsFunc(parseUserArgs(p.cfg.APIServerArgs), func(a arg) bool { return a.key == keyShutdownDelay })
	delay, _ := time.ParseDuration(value(p.args[nameAPIServer], keyShutdownDelay)) // upstream's parser has had it already
	switch {
	case p.hadOthers():
		etcd.steady()
	case alone(etcd.cfg):
		etcd.open = api.begin
	}
	kcm := &controllerManager{
		args: withoutGates(p.args[nameControllerManager]), options: p.programs.kcm, identity: p.identity, fence: &leased.controllerManager,
		record: newLeaseRecord(nameControllerManager, p.identity), alive: aliveCheck(g, nameControllerManager), logs: logs, log: logs.Logger(nameControllerManager),
	}
	sched := &kubeScheduler{
		args: withoutGates(p.args[nameScheduler]), options: p.programs.sched, settings: p.programs.settings, identity: p.identity, fence: &leased.scheduler,
		record: newLeaseRecord(nameScheduler, p.identity), alive: aliveCheck(g, nameScheduler), logs: logs, log: logs.Logger(nameScheduler),
	}

	members := newMembers(members{
		etcd: etcd, cfg: p.cfg, layout: p.layout, version: p.o.Version, prefix: p.storagePrefix(), log: logs.Logger(nameMembers),
	})

	seed := p.newSeed(api)
	collectors := []prometheus.Collector{seed.Collector()}
	var bridge *health.Bridge
	if p.cfg.HealthAddress != "" {
		bridge = p.newHealth(g)
		collectors = append(collectors, bridge.Collector())
	}
	bridges := []*supervise.Node{g.Add(p.newStatus(g, etcd, members, api, []*leaseRecord{kcm.record, sched.record}, collectors...)).StopWithin(stopBridges)}
	if bridge != nil {
		bridges = append(bridges, g.Add(bridge).StopWithin(stopBridges))
	}
	if p.o.Beside != nil {
		p.o.Beside.Add(g, bridges[0])
	}
	etcdNode := g.Add(etcd, bridges...).StopWithin(stopEtcd)
	g.Add(members, etcdNode).StopWithin(stopBridges)
	apiNode := g.Add(api, etcdNode).StopWithin(stopAPIServer + delay)
	g.Add(seed, apiNode)
	// The ports open at once; the programs behind them wait for the API server.
	kcmPort := g.Add(kcm.server(), bridges...).StopWithin(stopBridges)
	schedPort := g.Add(sched.server(), bridges...).StopWithin(stopBridges)
	g.Add(kcm, apiNode, kcmPort).StopWithin(stopControllers)
	g.Add(sched, apiNode, schedPort).StopWithin(stopControllers)
	return g, &Pulse{group: g, etcd: etcd, api: api}, nil
}

// hadOthers tells whether the member was one of several when this directory was
// last in use.
func (p *plant) hadOthers() bool {
	r, err := readRecord(p.layout)
	return err == nil && r != nil && r.Members > 1
}

func (p *plant) newHealth(g *supervise.Group) *health.Bridge {
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
func (p *plant) newSeed(api *apiServer) *rbacseed.Seed {
	return rbacseed.New(rbacseed.Config{
		User: kubeletClientUser(value(p.args[nameAPIServer], "kubelet-client-certificate")),
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
