package appliance

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// newStatus answers questions about this process.
func (p *plant) newStatus(g *supervise.Group, e *etcd, m *members, api *apiServer, leases []*leaseRecord, collectors ...prometheus.Collector) supervise.Component {
	versions, beside := Versions(), p.o.Beside
	if beside == nil {
		beside = &Beside{Report: func(*status.Report) {}}
	}
	used := status.CertificatesOf(p.usedFiles)
	p.events = newEventWriter(p.cfg.Name, api.Loopback, used, p.o.Logs.Logger("kthwd"))
	return status.NewServer(status.ServerConfig{
		Changed: g.Changed, OnEvent: p.events.seen,
		Socket: p.socket.control, Address: p.o.Metrics.Address, Web: p.o.Metrics.Web, Pprof: p.o.Metrics.Pprof,
		Logs: p.o.Logs, Collectors: append(collectors, beside.Collectors...), Programs: programSeries(), Private: m.private(),
		Report: func() status.Report {
			ready, reason := g.Ready()
			quorum := e.Quorum()
			r := status.Report{
				Version: p.o.Version, Kubernetes: versions.Kubernetes, Etcd: versions.Etcd,
				PID: os.Getpid(), Started: p.o.Started, Ready: ready, Reason: reason,
				Components: g.Status(), Quorum: &quorum,
				Name: p.cfg.Name, Dependencies: g.Dependencies(), Restarts: g.Restarts(),
				Member: e.Member(), Certificates: append(used(), api.loopbackCertificate()...),
			}
			for _, l := range leases {
				r.Leases = append(r.Leases, l.Lease())
			}
			beside.Report(&r)
			return r
		},
	})
}

// usedFiles are the certificates and kubeconfigs that the programs are told to
// use, and those that kthwd and its verbs use beside them, each once.
func (p *plant) usedFiles() (files []string) {
	add := func(path string) {
		if path != "" && !slices.Contains(files, path) {
			files = append(files, path)
		}
	}
	for _, program := range []string{nameEtcd, nameAPIServer, nameControllerManager, nameScheduler} {
		for _, a := range p.args[program] {
			if namesCertificate(a.key) {
				add(a.value)
			}
		}
	}
	add(p.layout.Cert(pki.NameHealth))
	add(p.layout.Kubeconfig(pki.NameAdmin))
	if p.o.Metrics.Web != "" {
		if w, err := status.ReadWeb(p.o.Metrics.Web); err == nil {
			add(w.CertFile)
			add(w.CAFile)
		}
	}
	return files
}

// namesCertificate tells whether the value of a program's flag is a file of
// certificates, or a kubeconfig.
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

// remember keeps the record true while the member runs. A failure is no reason to
// stop: it is tried again.
func (p *plant) remember(server *embed.Etcd) {
	r := versionsOf(p.o.Version)
	ids := recordOf(server.Server.Cluster().ID(), server.Server.MemberID())
	r.Cluster, r.Member, r.Members = ids.Cluster, ids.Member, voters(server)
	if r == p.record {
		return
	}
	if err := errors.Join(r.write(p.layout), forgetJoin(p.layout)); err != nil {
		p.log.Debug("member record not written", "file", p.layout.Record(), "err", err)
		return
	}
	p.record = r
}
