package appliance

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/component-base/metrics/legacyregistry"

	"kthwd/appliance/program"
	"kthwd/appliance/status"
)

// The programs share two registries: etcd registers with Prometheus' default one,
// the Kubernetes programs with one of their own (component-base/metrics/legacyregistry).
// Each family is shown once, at the program that it is about.

// kubernetesFamilies says by its first letters whose family of Kubernetes'
// registry is. What is not listed is kube-controller-manager's: its controllers name
// theirs as they like, and most of what all three share, work queues and clients, is
// its own.
var kubernetesFamilies = []struct{ prefix, program string }{
	{"aggregator_", program.APIServer},
	{"apiextensions_", program.APIServer},
	{"apiserver_", program.APIServer},
	{"authenticated_user_", program.APIServer},
	{"authentication_", program.APIServer},
	{"authorization_", program.APIServer},
	{"etcd_", program.APIServer}, // as a client of etcd
	{"field_validation_", program.APIServer},
	{"grpc_client_", program.APIServer}, // to etcd
	{"kube_apiserver_", program.APIServer},
	{"node_authorizer_", program.APIServer},
	{"pod_security_", program.APIServer},
	{"serviceaccount_", program.APIServer},
	{"watch_cache_", program.APIServer},
	{"scheduler_", program.Scheduler},
	// Of the process: what is built in, which features are on, what the registry holds.
	{"cardinality_enforcement_", program.APIServer},
	{"disabled_metrics_", program.APIServer},
	{"hidden_metrics_", program.APIServer},
	{"kubernetes_", program.APIServer},
	{"registered_metrics_", program.APIServer},
	{"version_info", program.APIServer},
}

// ofProcess are the families that are kthwd's own: both registries have them.
var ofProcess = []string{"go_", "process_", "promhttp_"}

// ofEtcd are etcd's families. The default registry has some of Kubernetes', too,
// which that registers with both (CustomMustRegister in component-base/metrics/legacyregistry).
var ofEtcd = []string{"etcd_", "grpc_server_", "os_fd_"}

func hasPrefix(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// familyOf is the program that a family of Kubernetes' registry is shown at; ""
// for what is kthwd's own.
func familyOf(name string) string {
	if hasPrefix(name, ofProcess) {
		return ""
	}
	for _, f := range kubernetesFamilies {
		if strings.HasPrefix(name, f.prefix) {
			return f.program
		}
	}
	return program.ControllerManager
}

// programSeries are the programs of this process with the series of each.
func programSeries() []status.Program {
	of := func(owner string) prometheus.Gatherer {
		return selected{legacyregistry.DefaultGatherer, func(name string) bool { return familyOf(name) == owner }}
	}
	return []status.Program{
		{Name: program.Etcd, Gatherer: selected{prometheus.DefaultGatherer, func(name string) bool { return hasPrefix(name, ofEtcd) }}},
		{Name: program.APIServer, Gatherer: of(program.APIServer)},
		{Name: program.ControllerManager, Gatherer: of(program.ControllerManager)},
		{Name: program.Scheduler, Gatherer: of(program.Scheduler)},
	}
}

// selected is a part of what another one gathers.
type selected struct {
	from interface {
		Gather() ([]*dto.MetricFamily, error)
	}
	keep func(name string) bool
}

// Gather implements prometheus.Gatherer.
func (s selected) Gather() ([]*dto.MetricFamily, error) {
	all, err := s.from.Gather()
	kept := all[:0]
	for _, f := range all {
		if s.keep(f.GetName()) {
			kept = append(kept, f)
		}
	}
	return kept, err
}
