package appliance

import (
	"cmp"
	"context"
	"slices"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	rbacclient "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"

	"kthwd/appliance/advice"
	"kthwd/appliance/agree"
	"kthwd/appliance/apiserver"
	"kthwd/appliance/cause"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/controllers"
	"kthwd/appliance/drift"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/lease"
	"kthwd/appliance/membership"
	"kthwd/appliance/membership/joins"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/refused"
	"kthwd/appliance/rotations"
	"kthwd/appliance/supervise"
	"kthwd/appliance/tokenkeys"
	"kthwd/appliance/upgrade"
	"kthwd/appliance/upstream"
	"kthwd/appliance/version"
	"kthwd/health"
	"kthwd/rbacseed"
)

// newDrift compares what the programs use, which the user's flags may have replaced.
func (p *wiring) newDrift() *drift.Drift {
	api, manager := p.Args[program.APIServer], p.Args[program.ControllerManager]
	return &drift.Drift{
		Prefix: p.storagePrefix(), ServiceRange: program.Value(api, "service-cluster-ip-range"),
		PodRange: program.Value(manager, "cluster-cidr"), Allocates: program.Value(manager, "allocate-node-cidrs") == "true",
		ClusterName: program.Value(manager, "cluster-name"), ClusterToken: program.Value(p.Args[program.Etcd], "initial-cluster-token"),
		Issuers: program.Values(api, "service-account-issuer"),
	}
}

// newTokenKeys makes the watch over tokens that the API server refuses.
func (p *wiring) newTokenKeys() *tokenkeys.Watch {
	api := p.Args[program.APIServer]
	return tokenkeys.New(tokenkeys.Config{
		Files: program.Values(api, "service-account-key-file"), Issuers: program.Values(api, "service-account-issuer"),
		Kubeconfig: p.Layout.Kubeconfig(pki.NameAdmin), Log: p.o.Logs.Logger(program.APIServer),
	})
}

// newEtcd makes the member as it last ran in this directory: a member that had others
// keeps etcd's own timing.
func (p *wiring) newEtcd(onOpen func()) (*etcd.Member, error) {
	before, _ := etcdfiles.ReadRecord(p.Layout) // Guard has read it, too
	member, err := etcd.New(etcd.Config{
		Args: p.Args[program.Etcd], Log: p.o.Logs.Logger(program.Etcd),
		HadQuorum: before != nil, HadOthers: before != nil && before.Members > 1,
		OnOpen: onOpen, OnFirstQuorum: p.admit, OnMembership: p.remember,
	})
	if err != nil {
		return nil, advice.Usage(err)
	}
	return member, member.AdmitControllers()
}

func (p *wiring) newAgree(member *etcd.Member) *agree.Controllers {
	return &agree.Controllers{
		Member: member, Layout: p.Layout, Address: p.Config.AdvertiseAddress, Args: p.Args, Log: p.log,
		Profile:  p.Config.Profile,
		Read:     flagReader(),
		Hosts:    func() []string { return pki.HostsOf(program.Value(p.Args[program.APIServer], "tls-cert-file")) },
		Versions: map[string]string{"kthwd": p.o.Version, "Kubernetes": version.Linked().Kubernetes, "etcd": version.Linked().Etcd},
	}
}

func (p *wiring) newUpgrade(member *etcd.Member) *upgrade.Watch {
	return upgrade.New(upgrade.Config{
		Name: p.Config.Name, Layout: p.Layout, Member: member, APIServer: p.Args[program.APIServer],
		Now: etcdfiles.Versions(p.o.Version), Log: p.o.Logs.Logger("kthwd"),
	})
}

// admit decides whether this controller belongs to the cluster.
func (p *wiring) admit(ctx context.Context, member *etcd.Member, server *embed.Etcd) error {
	if err := p.shared.Check(ctx, server, member.Sharers(), p.o.Logs.Logger(program.Etcd)); err != nil {
		return err
	}
	if member.Sharers() > 1 {
		client := v3client.New(server.Server)
		defer client.Close()
		if err := p.rotations.Admit(ctx, client); err != nil {
			return err
		}
	}
	if err := p.upgrade.Admit(ctx, server); err != nil {
		return err
	}
	joins.Arrive(ctx, server)
	p.tokens.Record(ctx, server)
	return p.drift.Check(ctx, server)
}

func (p *wiring) newAPIServer(member *etcd.Member, fences *lease.Fences) *apiserver.Server {
	users := program.ParseUser(p.Config.APIServerArgs)
	return apiserver.New(apiserver.Config{
		Args: cmdline.WithoutGates(p.Args[program.APIServer]), Server: p.Config.LocalServer(),
		Layout: p.Layout, Etcd: member, Fences: fences, Log: p.o.Logs.Logger(program.APIServer),
		Workers: p.workers, Encryption: p.rotations.Gate, Signed: p.recordSigned,
		Lists: []*refused.List{p.workers.Removals, p.users.Revoked}, Tried: p.users.Tried, Seen: p.users.Seen, Used: p.rotations.Used,
		Refused: p.tokens.Refused, Accepted: p.tokens.Accepted, TokenKeys: p.rotations.Keys,
		UsersDelay: slices.ContainsFunc(users, func(a program.Arg) bool { return a.Key == program.KeyShutdownDelay }),
	})
}

// shutdownDelay is how long the API server keeps serving in a stop.
func (p *wiring) shutdownDelay() time.Duration {
	delay, _ := time.ParseDuration(program.Value(p.Args[program.APIServer], program.KeyShutdownDelay)) // upstream has parsed it before
	return delay
}

func (p *wiring) controllersConfig(g *supervise.Group, name string, fence *lease.Fence, pause *lease.Pause) controllers.Config {
	return controllers.Config{
		Args: cmdline.WithoutGates(p.Args[name]), Identity: p.Identity,
		Term: p.rotations.TermArgs, Fence: fence, Pause: pause, Live: p.live[name], Alive: controllers.Alive(g, name), Logs: p.o.Logs,
	}
}

// newLive makes the kubeconfigs of kthwd's own whose certificates kthwd renews.
func (p *wiring) newLive() map[string]*controllers.Live {
	all := map[string]*controllers.Live{}
	for name, file := range map[string]string{program.ControllerManager: pki.NameControllerManager, program.Scheduler: pki.NameScheduler} {
		all[name] = controllers.NewLive(p.Layout.Kubeconfig(file), p.Layout.Run(), p.o.Logs.Logger(name))
	}
	return all
}

func (p *wiring) newRotations(c *components, client func() (*rest.Config, error)) *rotations.Rotations {
	return rotations.New(rotations.Config{
		Controller: p.Config, Args: p.Args, Prefix: p.storagePrefix(), Shared: p.shared, WriteRun: p.WriteRun, Life: p.o.LeafLife,
		Etcd: c.member, Members: c.members, Mover: p.mover, Others: p.others, Machine: p.machine, Refused: p.tokens,
		Manager: c.managerPause, Scheduler: c.schedulerPause, Within: controllers.CertificatesWithin(), Client: client, Logs: p.o.Logs,
		Refresh: func() {
			for _, l := range p.live {
				l.Refresh()
			}
		},
	})
}

func (p *wiring) newMembers(member *etcd.Member) *membership.Members {
	return membership.New(membership.Config{
		Etcd: member, Controller: p.Config, Layout: p.Layout, Version: p.o.Version,
		Prefix: p.storagePrefix(), Log: p.o.Logs.Logger(membership.Name),
	})
}

// newHealth makes the health bridge; nil if it is switched off.
func (p *wiring) newHealth(g *supervise.Group) *health.Bridge {
	if p.Config.HealthAddress == "" {
		return nil
	}
	return health.New(health.Config{
		Address:    p.Config.HealthAddress,
		ServerName: p.Config.HealthServerName,
		Target:     p.Config.LocalServer(),
		CAFile:     p.Layout.CA(),
		CertFile:   p.Layout.Cert(pki.NameHealth),
		KeyFile:    p.Layout.Key(pki.NameHealth),
		Local:      g.Ready,
		Components: func() []health.Check { return checks(g) },
		Log:        p.o.Logs.Logger("health"),
	})
}

// checks returns the state record in the form of the bridge's ?verbose.
func checks(g *supervise.Group) []health.Check {
	var all []health.Check
	for _, s := range upstream.Explain(g.Status()) {
		reason := cmp.Or(s.Reason, string(s.State))
		if c, ok := cause.Of(s.Cause, cause.Names{}); ok {
			reason = string(s.State) + ": " + c.Public
		}
		all = append(all, health.Check{Name: s.Name, OK: s.Healthy(), Reason: reason})
	}
	return all
}

// newSeed makes the component that binds the role to the user of the API server's
// kubelet client certificate.
func (p *wiring) newSeed(api *apiserver.Server) *rbacseed.Seed {
	return rbacseed.New(rbacseed.Config{
		User: apiserver.KubeletClientUser(program.Value(p.Args[program.APIServer], "kubelet-client-certificate")),
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
