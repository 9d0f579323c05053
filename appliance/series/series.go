// Package series assigns each family of Prometheus metrics in this process to one
// program.
//
// Programs returns the programs with a gatherer each, for the metrics address; the
// status server serves one path for each of them. The package registers nothing and
// changes no family.
package series

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
// Each family is shown once, with the program that it describes.

// kubernetesFamilies maps the prefix of a family in Kubernetes' registry to its program.
// All other families belong to kube-controller-manager, whose controllers choose names
// freely, and to which most shared families, work queues and clients, belong.
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
	// Of the process: build, features, and the registry itself.
	{"cardinality_enforcement_", program.APIServer},
	{"disabled_metrics_", program.APIServer},
	{"hidden_metrics_", program.APIServer},
	{"kubernetes_", program.APIServer},
	{"registered_metrics_", program.APIServer},
	{"version_info", program.APIServer},
}

// ofProcess lists kthwd's own families, which both registries have.
var ofProcess = []string{"go_", "process_", "promhttp_"}

// ofEtcd lists etcd's families. The default registry also has some of Kubernetes', which
// are registered with both (CustomMustRegister in component-base/metrics/legacyregistry).
var ofEtcd = []string{"etcd_", "grpc_server_", "os_fd_"}

func hasPrefix(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// familyOf returns the program of a family in Kubernetes' registry; "" means kthwd's own.
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

// Programs returns the programs of this process with their series.
func Programs() []status.Program {
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

// selected is a gatherer of some families of another one.
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
