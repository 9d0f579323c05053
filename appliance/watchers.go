package appliance

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/apiserver"
	"kthwd/appliance/clusterwatch"
	"kthwd/appliance/program"
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
func (p *prepared) newWatchers(api *apiserver.Server, seed *rbacseed.Seed) (all []prometheus.Collector) {
	cluster := clusterwatch.New(clusterwatch.Config{
		Client: api.Loopback,
		Restore: []clusterwatch.Restorer{
			apiserver.RestoreBootstrapRoles,
			func(ctx context.Context, _ kubernetes.Interface) ([]rbacseed.Change, error) { return seed.Restore(ctx) },
		},
		Event:    func(reason, text string) { p.events.warn(reason, text) },
		AuditLog: program.Value(p.args[program.APIServer], "audit-log-path"),
		Log:      p.o.Logs.Logger("kthwd"),
	})
	p.watchers = []watcher{cluster}
	for _, w := range p.watchers {
		p.observers = append(p.observers, w)
		all = append(all, w)
	}
	return all
}
