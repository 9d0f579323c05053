package appliance

import (
	"context"
	"log/slog"
	"net/http"

	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	componentbaseconfig "k8s.io/component-base/config"
	"k8s.io/component-base/configz"
	"k8s.io/component-base/metrics/prometheus/slis"
	genericcontrollermanager "k8s.io/controller-manager/app"
	controllerhealthz "k8s.io/controller-manager/pkg/healthz"
	kcmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"

	"kthwd/appliance/logging"
	"kthwd/appliance/supervise"
)

// controllerManager runs kube-controller-manager for as long as its lease lasts,
// again and again.
type controllerManager struct {
	args     []arg
	options  *kcmoptions.KubeControllerManagerOptions // parsed once; read only
	identity string
	record   *leaseRecord
	fence    *fence
	alive    healthz.HealthChecker
	logs     *logging.Logs
	log      *slog.Logger
}

var _ supervise.Component = (*controllerManager)(nil)

// Name implements supervise.Component.
func (m *controllerManager) Name() string { return nameControllerManager }

// Run implements supervise.Component. It is ready when it leads, or knows who does.
func (m *controllerManager) Run(ctx context.Context, ready func()) error {
	client, err := clientcmd.BuildConfigFromFlags(m.options.Master, m.options.Generic.ClientConnection.Kubeconfig)
	if err != nil {
		return err
	}
	l := &lease{
		component: nameControllerManager, identity: m.identity,
		election: m.options.Generic.LeaderElection, client: client, log: m.log, record: m.record, fence: m.fence,
	}
	return l.run(ctx, ready, func(context.Context) (func(context.Context) error, error) { return m.term, nil })
}

// term is one run of kube-controller-manager without leader election of its
// own. kcmapp.Run then returns only when all controllers have stopped.
func (m *controllerManager) term(ctx context.Context) error {
	// KCM registers its informers under a process-wide unique name and never
	// releases it (client-go/tools/cache/identity.go); nothing else in this process uses such names.
	cache.ResetInformerNamesForTesting()
	configz.Delete(kcmapp.ConfigzName)
	opts, err := parseControllerManager(m.args)
	if err != nil {
		return err
	}
	opts.SecureServing.BindPort = 0 // 10257 outlives every term: see server
	opts.Generic.LeaderElection.LeaderElect = false
	ctx = contextFor(ctx, m.logs, nameControllerManager)
	config, err := opts.Config(ctx, kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases())
	if err != nil {
		return err
	}
	return kcmapp.Run(ctx, config.Complete())
}

// parseControllerManager reads a kube-controller-manager command line with
// upstream's own options.
func parseControllerManager(args []arg) (*kcmoptions.KubeControllerManagerOptions, error) {
	opts, err := kcmoptions.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, err
	}
	sets := opts.Flags(kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases())
	opts.ParsedFlags = &sets
	return opts, parseFlags(nameControllerManager, sets, args)
}

// handler is what 10257 answers, leader or not: kcmapp.Run's handler without
// its per-term parts.
func (m *controllerManager) handler(auth *servingAuth) http.Handler {
	debugging := &componentbaseconfig.DebuggingConfiguration{}
	_ = m.options.Generic.Debugging.ApplyTo(debugging) // copies two fields; its error is always nil
	mux := genericcontrollermanager.NewBaseHandler(debugging, controllerhealthz.NewMutableHealthzHandler(m.alive))
	slis.SLIMetricsWithReset{}.Install(mux)
	return auth.wrap(mux)
}

// server is the component that answers on 10257.
func (m *controllerManager) server() *secureServer {
	return &secureServer{
		name: nameControllerManager + "-port", serving: m.options.SecureServing,
		authn: m.options.Authentication, authz: m.options.Authorization, handler: m.handler,
	}
}
