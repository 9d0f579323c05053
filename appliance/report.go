package appliance

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/apiserver"
	"kthwd/appliance/cause"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/etcdmetrics"
	"kthwd/appliance/events"
	"kthwd/appliance/lease"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/selfbackup"
	"kthwd/appliance/series"
	"kthwd/appliance/status"
	"kthwd/appliance/status/history"
	"kthwd/appliance/supervise"
	"kthwd/appliance/upstream"
	"kthwd/appliance/version"
)

// newStatus makes the component that serves the status of this process.
func (p *wiring) newStatus(g *supervise.Group, c *components, collectors []prometheus.Collector) supervise.Component {
	versions, extra := version.Linked(), p.o.ExtraRole
	if extra == nil {
		extra = &ExtraRole{Report: func(*status.Report) {}}
	}
	private := c.members.Private()
	maps.Copy(private, p.agree.Private())
	maps.Copy(private, p.mover.Private())
	for _, r := range p.rotations.All() {
		maps.Copy(private, r.Private())
	}
	maps.Copy(private, selfbackup.BeforeChange(p.Config, p.log))
	maps.Copy(private, selfbackup.Database(c.member.OpenCopy))
	if p.o.Private != nil {
		maps.Copy(private, p.o.Private(p.Args))
	}
	used := status.CertificatesOf(p.usedFiles)
	p.events = events.New(p.Config.Name, c.api.Loopback, used, p.o.Logs.Logger("kthwd"))
	c.member.UseViews(p.others)
	server := status.NewServer(status.ServerConfig{
		Others: p.others.Controllers, History: []history.Source{etcdmetrics.History(), series.Requests(c.api.Loopback)},
		Changed: g.Changed, OnEvent: p.events.Seen,
		Socket: p.Socket.Control, Address: p.o.Metrics.Address, Web: p.o.Metrics.Web, Pprof: p.o.Metrics.Pprof,
		Logs: p.o.Logs, AsTyped: p.o.AsTyped, Collectors: append(collectors, extra.Collectors...), Programs: series.Programs(), Private: private,
		Report: func() status.Report {
			ready, reason := g.Ready()
			quorum := c.member.Quorum()
			r := status.Report{
				Version: p.o.Version, Kubernetes: versions.Kubernetes, Etcd: versions.Etcd,
				PID: os.Getpid(), Started: p.o.Started, Ready: ready, Reason: reason,
				Components: upstream.Explain(g.Status()), Names: p.names(c.api), Quorum: &quorum,
				Name: p.Config.Name, Dependencies: g.Dependencies(), Restarts: g.Restarts(),
				Member: c.member.Member(), Certificates: append(used(), c.api.LoopbackCertificate()...),
				LastRun: p.Run.Before(), Upgrade: p.upgrade.Report(),
			}
			for _, l := range []*lease.Record{c.manager.Record(), c.scheduler.Record()} {
				r.Leases = append(r.Leases, l.Lease())
			}
			for _, o := range p.observers {
				r.Observed = append(r.Observed, o.Findings()...)
			}
			r.Backup = p.backups.Report()
			extra.Report(&r)
			return r
		},
	})
	p.others.Exchange(server.Own)
	p.rotations.Handle(p.others)
	p.others.Listen(program.StatusAddress(p.Config))
	return server
}

// webClients looks at the clients of the metrics address.
func (p *wiring) webClients() status.WebClients {
	return status.WebClients{Address: p.o.Metrics.Address, Web: p.o.Metrics.Web, CA: program.Value(p.Args[program.APIServer], "client-ca-file")}
}

// names are those that the causes of errors are told with.
func (p *wiring) names(api *apiserver.Server) cause.Names {
	n := p.commandNames()
	n.Webhooks = api.Webhooks()
	return n
}

// commandNames are the part of names that commands need.
func (p *wiring) commandNames() cause.Names {
	n := cause.Names{Kubeconfig: p.Layout.Kubeconfig(pki.NameAdmin)}
	if p.Layout.Dir != config.Default().Controller.DataDir {
		n.Dir = p.Layout.Dir
	}
	if program.Value(p.Args[program.Etcd], "wal-dir") != "" {
		n.LogFlag = "--etcd-arg=wal-dir"
	}
	return n
}

// observer watches something outside the components, such as a disk, a file or an object in
// the API. Findings is called for each report, so it must not block.
type observer interface{ Findings() []status.Finding }

// usedFiles returns the certificates and kubeconfigs that the programs, kthwd and its
// verbs use, each once.
func (p *wiring) usedFiles() (files []string) {
	add := func(path string) {
		if path != "" && !slices.Contains(files, path) {
			files = append(files, path)
		}
	}
	for _, name := range []string{program.Etcd, program.APIServer, program.ControllerManager, program.Scheduler} {
		for _, a := range p.Args[name] {
			if namesCertificate(a.Key) {
				add(a.Value)
			}
		}
	}
	add(p.Layout.Cert(pki.NameHealth))
	add(p.Layout.Kubeconfig(pki.NameAdmin))
	if p.o.Metrics.Web != "" {
		if w, err := status.ReadWeb(p.o.Metrics.Web); err == nil {
			add(w.CertFile)
			add(w.CAFile)
		}
	}
	return files
}

// namesCertificate reports whether a program's flag takes a certificate file or a kubeconfig.
func namesCertificate(key string) bool {
	if strings.HasPrefix(key, "service-account-") {
		return key == "service-account-key-file"
	}
	for _, end := range []string{"ca-file", "cert-file", "client-certificate", "certificate-authority", "kubeconfig"} {
		if strings.HasSuffix(key, end) {
			return true
		}
	}
	return false
}

// remember updates the member record. After a failure the next call tries again.
func (p *wiring) remember(server *embed.Etcd) {
	r := p.upgrade.Remember()
	ids := etcdfiles.RecordOf(server.Server.Cluster().ID(), server.Server.MemberID())
	r.Cluster, r.Member, r.Members = ids.Cluster, ids.Member, view.Voters(server)
	if r != p.record {
		if err := errors.Join(r.Write(p.Layout), datadir.ForgetJoin(p.Layout)); err != nil {
			p.upgrade.NotWritten(err)
			return
		}
	}
	p.record = r
	p.upgrade.Wrote(r)
}
