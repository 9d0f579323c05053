package appliance

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/appliance/apiserver"
	"kthwd/appliance/apiserver/bootstrap"
	"kthwd/appliance/clusterwatch"
	"kthwd/appliance/config"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcdspace"
	"kthwd/appliance/observe"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/renewal"
	"kthwd/appliance/selfbackup"
	"kthwd/appliance/users"
	"kthwd/appliance/workers"
	"kthwd/rbacseed"
)

// watcher is an observer with metrics that runs until ctx ends. It ends nothing, and is no
// component.
type watcher interface {
	observer
	prometheus.Collector
	Run(ctx context.Context)
}

// newWatchers makes the watchers, and returns them as collectors of their metrics.
func (p *wiring) newWatchers(member *etcd.Member, api *apiserver.Server, seed *rbacseed.Seed) (all []prometheus.Collector) {
	cluster := clusterwatch.New(clusterwatch.Config{
		Client: api.Loopback,
		Restore: []clusterwatch.Restorer{
			bootstrap.RestoreRoles, bootstrap.RestorePriorityClasses, new(bootstrap.OwnAPIServices).Restore,
			func(ctx context.Context, _ kubernetes.Interface) ([]rbacseed.Change, error) { return seed.Restore(ctx) },
		},
		Event:      func(reason, text string) { p.events.Warn(reason, text) },
		AuditLog:   program.Value(p.Args[program.APIServer], "audit-log-path"),
		Kubeconfig: p.Layout.Kubeconfig(pki.NameAdmin),
		Log:        p.o.Logs.Logger("kthwd"),
	})
	p.backups = selfbackup.NewSchedule(p.Config, member.Running, p.o.Logs.Logger("backup"))
	renewer := renewal.New(renewal.Config{
		Layout: p.Layout, Life: p.o.LeafLife, Before: p.Renewed, Log: p.o.Logs.Logger("kthwd"),
		Event: func(warning bool, reason, text string) {
			if warning {
				p.events.Warn(reason, text)
				return
			}
			p.events.Note(reason, text)
		},
	})
	p.watchers = []watcher{
		cluster, p.machine, p.backups, p.agree, renewer, p.workers, p.users,
		etcdspace.NewGrowth(member, p.commandNames(), p.o.Logs.Logger(program.Etcd)), p.newUpkeep(member),
	}
	for _, w := range p.watchers {
		p.observers = append(p.observers, w)
		all = append(all, w)
	}
	return all
}

// newUpkeep makes the watcher that makes room in etcd's databases by itself.
func (p *wiring) newUpkeep(member *etcd.Member) *etcdspace.Upkeep {
	window, err := config.ParseWindow(p.Config.SpaceWindow)
	if err != nil {
		window = config.Window{} // the configuration was valid
	}
	return etcdspace.NewUpkeep(etcdspace.UpkeepConfig{Window: window.At, Member: member, Layout: p.Layout, Names: p.commandNames(), Log: p.o.Logs.Logger(program.Etcd)})
}

// newWorkers makes the desk that decides about the certificates of worker nodes.
func (p *wiring) newWorkers(member *etcd.Member, client func() (*rest.Config, error)) *workers.Desk {
	services, err := workers.ParseRanges(strings.Split(program.Value(p.Args[program.APIServer], "service-cluster-ip-range"), ","))
	if err != nil {
		services = nil // upstream refuses it
	}
	return workers.New(workers.Config{
		Client: client, Etcd: member.Running, Services: services, Log: p.o.Logs.Logger("kthwd"),
		Reserved: func(ctx context.Context, etcd *clientv3.Client) ([]string, error) { return p.agree.AllHosts(ctx, etcd) }, // made later
		Renews:   users.IsBalancer,
		MayRenew: func(ctx context.Context, etcd *clientv3.Client, r workers.Request) error {
			return users.MayRenew(ctx, etcd, users.Renewal{User: r.User, Groups: r.Groups, Credential: r.Credential,
				Signer: r.Signer, Usages: r.Usages, Life: r.Life, Contents: r.Contents})
		},
	})
}

// recordSigned records a certificate that was signed for a request.
func (p *wiring) recordSigned(ctx context.Context, s apiserver.Signed) error {
	c := users.RecordOf(s.Certificate)
	c.Signer, c.Request, c.AskedBy = s.Signer, s.Request, s.User
	return p.users.Signed(ctx, c)
}

// newObserve makes the watch over disks, files and descriptors.
func (p *wiring) newObserve() *observe.Watch {
	places := []observe.Place{{Path: p.Layout.Dir, Use: observe.Data}, {Path: p.Layout.Etcd(), Use: observe.Etcd}}
	if wal := program.Value(p.Args[program.Etcd], "wal-dir"); wal != "" {
		places = append(places, observe.Place{Path: wal, Use: observe.Etcd})
	}
	if audit := program.Value(p.Args[program.APIServer], "audit-log-path"); audit != "" && audit != "-" {
		places = append(places, observe.Place{Path: filepath.Dir(audit), Use: observe.Audit})
	}
	if p.Config.BackupDir != "" {
		places = append(places, observe.Place{Path: p.Config.BackupDir, Use: observe.Backup})
	}
	files := append(observe.FilesOf(p.Args),
		observe.File{Path: p.Layout.Kubeconfig(pki.NameAdmin), Role: observe.Kubeconfig},
		observe.File{Path: p.Layout.Cert(pki.NameHealth), Key: p.Layout.Key(pki.NameHealth), Role: observe.Certificate},
		observe.File{Path: p.Layout.Key(pki.NameHealth), Role: observe.Key})
	for _, path := range []string{p.Layout.Key(pki.NameEtcdCA), p.Layout.Key(pki.NameFrontProxyCA), p.Layout.Kubeconfig(pki.NameSuperAdmin)} {
		files = append(files, observe.File{Path: path, Role: observe.Spare})
	}
	if p.o.File != "" {
		files = append(files, observe.File{Path: p.o.File})
	}
	return observe.New(observe.Config{
		Places: places, Files: files, Log: p.o.Logs.Logger("kthwd"),
		Check: func() error { _, err := pki.Check(p.Layout, p.Config.PKISpec()); return err },
	})
}
