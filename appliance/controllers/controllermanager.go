package controllers

import (
	"context"
	"fmt"
	"net/http"

	"k8s.io/client-go/tools/cache"
	componentbaseconfig "k8s.io/component-base/config"
	"k8s.io/component-base/configz"
	"k8s.io/component-base/metrics/prometheus/slis"
	genericcontrollermanager "k8s.io/controller-manager/app"
	controllerhealthz "k8s.io/controller-manager/pkg/healthz"
	kcmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"

	"kthwd/appliance/cmdline"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/term"
	"kthwd/appliance/upstream"
)

// Manager runs kube-controller-manager, one term for each lease that it wins. Make one with NewManager.
type Manager struct {
	common
	options *kcmoptions.KubeControllerManagerOptions // parsed once; read only
}

var _ supervise.Component = (*Manager)(nil)

// NewManager prepares kube-controller-manager. options are those of c.Args, parsed.
func NewManager(c Config, options *kcmoptions.KubeControllerManagerOptions) *Manager {
	return &Manager{common: newCommon(program.ControllerManager, c), options: options}
}

// Run implements supervise.Component. It is ready when this controller leads or
// has seen the leader.
func (m *Manager) Run(ctx context.Context, ready func()) error {
	client, err := m.newLeaseClient(m.options.Master, m.options.Generic.ClientConnection.Kubeconfig)
	if err != nil {
		return err
	}
	defer client.hangUp()
	l := m.lease(m.options.Generic.LeaderElection, client)
	return l.Run(ctx, ready, func(_ context.Context, server string) (func(context.Context) error, error) {
		return func(ctx context.Context) error { return m.term(ctx, server) }, nil
	})
}

// term is one run of kube-controller-manager without its own leader election, against the
// API server at that URL if it is not empty. kcmapp.Run then returns only when all
// controllers have stopped.
func (m *Manager) term(ctx context.Context, server string) error {
	// KCM registers its informers under a process-wide unique name and never
	// releases it (client-go/tools/cache/identity.go); nothing else in this process uses such names.
	cache.ResetInformerNamesForTesting()
	configz.Delete(kcmapp.ConfigzName)
	args := m.args
	if m.forTerm != nil {
		args = m.forTerm(args)
	}
	opts, err := ParseManager(m.live.in(args))
	if err != nil {
		return err
	}
	opts.SecureServing.BindPort = 0 // 10257 outlives every term: see server
	if server != "" {
		opts.Master = server
	}
	opts.Generic.LeaderElection.LeaderElect = false
	ctx = upstream.ContextFor(ctx, m.logs, program.ControllerManager)
	config, err := opts.Config(ctx, kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases())
	if err != nil {
		return err
	}
	if err := endWith(ctx, config); err != nil {
		return err
	}
	err = kcmapp.Run(ctx, config.Complete())
	if err != nil && err.Error() == shutdownTimeout {
		return fmt.Errorf("%w; %w", err, term.ErrStillRunning)
	}
	return upstream.Explained(err)
}

// shutdownTimeout is the error of kcmapp.Run when it has given up on controllers that do not
// stop.
const shutdownTimeout = "controller shutdown timeout reached"

// ParseManager reads a kube-controller-manager command line with
// upstream's own options.
func ParseManager(args []program.Arg) (*kcmoptions.KubeControllerManagerOptions, error) {
	opts, err := kcmoptions.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, err
	}
	sets := opts.Flags(kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases())
	opts.ParsedFlags = &sets
	return opts, cmdline.Parse(program.ControllerManager, sets, args)
}

// handler answers on 10257, on leader and standby: kcmapp.Run's handler without its
// per-term parts.
func (m *Manager) handler(auth *servingAuth) http.Handler {
	debugging := &componentbaseconfig.DebuggingConfiguration{}
	_ = m.options.Generic.Debugging.ApplyTo(debugging) // copies two fields; its error is always nil
	mux := genericcontrollermanager.NewBaseHandler(debugging, controllerhealthz.NewMutableHealthzHandler(m.alive))
	slis.SLIMetricsWithReset{}.Install(mux)
	return auth.wrap(mux)
}

// Port is the component that answers on 10257.
func (m *Manager) Port() *Port {
	return &Port{
		name: program.ControllerManager + "-port", serving: m.options.SecureServing,
		authn: m.options.Authentication, authz: m.options.Authorization, handler: m.handler, live: m.live,
	}
}
