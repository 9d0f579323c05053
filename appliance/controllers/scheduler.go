package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"sync/atomic"

	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/client-go/informers"
	componentbaseconfig "k8s.io/component-base/config"
	"k8s.io/component-base/configz"
	"k8s.io/component-base/logs"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/component-base/metrics/prometheus/slis"
	configv1 "k8s.io/kube-scheduler/config/v1"
	schedapp "k8s.io/kubernetes/cmd/kube-scheduler/app"
	schedulerconfig "k8s.io/kubernetes/cmd/kube-scheduler/app/config"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	configv1conversion "k8s.io/kubernetes/pkg/scheduler/apis/config/v1"
	"k8s.io/kubernetes/pkg/scheduler/metrics/resources"

	"kthwd/appliance/advice"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/upstream"
)

// schedulerConfigz is the name under which kube-scheduler publishes its
// configuration (kube-scheduler/app/server.go:Run).
const schedulerConfigz = "componentconfig"

// Scheduler runs kube-scheduler, one term for each lease that it wins. It fills its
// caches while it is standby, so that it binds pods at once when it gets the lease. Make one with NewScheduler.
type Scheduler struct {
	common
	options  *schedoptions.Options // parsed once; read only
	settings Settings

	leading   atomic.Bool
	informers atomic.Pointer[informers.SharedInformerFactory] // of the newest term
}

var _ supervise.Component = (*Scheduler)(nil)

// NewScheduler prepares kube-scheduler. options and settings are those of c.Args,
// parsed.
func NewScheduler(c Config, options *schedoptions.Options, settings Settings) *Scheduler {
	return &Scheduler{common: newCommon(program.Scheduler, c), options: options, settings: settings}
}

// Settings is the part of the scheduler's effective configuration that kthwd needs,
// from flags or from its file.
type Settings struct {
	kubeconfig string
	election   componentbaseconfig.LeaderElectionConfiguration
	profiling  bool
	contention bool // profile what goroutines wait for, in the whole process
}

// Run implements supervise.Component. It is ready when this controller leads or
// has seen the leader.
func (s *Scheduler) Run(ctx context.Context, ready func()) error {
	client, err := s.newLeaseClient(s.options.Master, s.settings.kubeconfig)
	if err != nil {
		return err
	}
	defer client.hangUp()
	l := s.lease(s.settings.election, client)
	return l.Run(ctx, ready, s.prepare)
}

// prepare builds a scheduler, which can be run once, and fills its caches. It
// is kube-scheduler/app/server.go:Run up to the election, which would exit the
// process there, even on a clean stop.
func (s *Scheduler) prepare(ctx context.Context, server string) (func(context.Context) error, error) {
	configz.Delete(schedulerConfigz)
	opts, err := ParseScheduler(s.live.in(s.args))
	if err != nil {
		return nil, err
	}
	if opts.ConfigFile, err = s.live.inSchedulerConfig(opts.ConfigFile); err != nil {
		return nil, err
	}
	if server != "" {
		opts.Master = server
	}
	opts.SecureServing.BindPort = 0         // 10259 outlives every term: see server
	opts.LeaderElection.LeaderElect = false // the lease is kthwd's
	ctx = upstream.ContextFor(ctx, s.logs, program.Scheduler)
	config, sched, err := schedapp.Setup(ctx, opts)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(publishSchedulerConfig(config), trimNodes(config.InformerFactory)); err != nil {
		return nil, err
	}
	config.EventBroadcaster.StartRecordingToSink(ctx.Done())
	context.AfterFunc(ctx, config.EventBroadcaster.Shutdown)
	config.InformerFactory.Start(ctx.Done())
	config.DynInformerFactory.Start(ctx.Done())
	config.InformerFactory.WaitForCacheSync(ctx.Done())
	config.DynInformerFactory.WaitForCacheSync(ctx.Done())
	if err := sched.WaitForHandlersSync(ctx); err != nil {
		return nil, fmt.Errorf("fill the caches: %w", err)
	}
	s.informers.Store(&config.InformerFactory)
	return func(work context.Context) error {
		return s.term(upstream.ContextFor(work, s.logs, program.Scheduler), config, sched)
	}, nil
}

// term schedules until ctx ends.
func (s *Scheduler) term(ctx context.Context, config *schedulerconfig.CompletedConfig, sched *scheduler.Scheduler) error {
	s.leading.Store(true)
	defer s.leading.Store(false)
	sched.Run(ctx)
	config.InformerFactory.Shutdown()
	config.DynInformerFactory.Shutdown()
	return nil
}

// publishSchedulerConfig makes the effective configuration readable at /configz.
func publishSchedulerConfig(config *schedulerconfig.CompletedConfig) error {
	external := &configv1.KubeSchedulerConfiguration{}
	if err := configv1conversion.Convert_config_KubeSchedulerConfiguration_To_v1_KubeSchedulerConfiguration(&config.ComponentConfig, external, nil); err != nil {
		return err
	}
	external.SetGroupVersionKind(configv1.SchemeGroupVersion.WithKind("KubeSchedulerConfiguration"))
	cz, err := configz.New(schedulerConfigz)
	if err != nil {
		return err
	}
	return cz.Set(external)
}

// ParseScheduler reads a kube-scheduler command line with upstream's own options.
func ParseScheduler(args []program.Arg) (*schedoptions.Options, error) {
	opts := schedoptions.NewOptions()
	return opts, cmdline.Parse(program.Scheduler, *opts.Flags, args)
}

// ReadSettings reads kubeconfig, lease and profiling from the flags or the file
// that they name.
func ReadSettings(opts *schedoptions.Options) (Settings, error) {
	config, err := latest.Default()
	if err != nil {
		return Settings{}, err
	}
	if opts.ConfigFile != "" {
		if config, err = schedoptions.LoadConfigFromFile(cmdline.DiscardLogger, opts.ConfigFile); err != nil {
			return Settings{}, fmt.Errorf("%s: %s: %w", program.Scheduler, opts.ConfigFile, err)
		}
	} else {
		opts.ComponentConfig = config
		opts.ApplyDeprecated()
	}
	opts.ApplyLeaderElectionTo(config)
	if config.ClientConnection.Kubeconfig == "" {
		return Settings{}, advice.With(fmt.Errorf("%s: %s: clientConnection.kubeconfig is missing", program.Scheduler, opts.ConfigFile),
			"add it: the file, not the flags, says how the scheduler connects")
	}
	return Settings{
		kubeconfig: config.ClientConnection.Kubeconfig,
		election:   config.LeaderElection,
		profiling:  config.EnableProfiling,
		contention: config.EnableContentionProfiling,
	}, nil
}

// handler serves 10259, leader or not. Upstream's own is not exported
// (kube-scheduler/app/server.go:newEndpointsHandler).
func (s *Scheduler) handler(auth *servingAuth) http.Handler {
	m := mux.NewPathRecorderMux(program.Scheduler)
	healthz.InstallHandler(m, s.alive)
	healthz.InstallLivezHandler(m)
	healthz.InstallReadyzHandler(m, s.alive)
	configz.InstallHandler(m)
	m.Handle("/metrics", legacyregistry.HandlerWithReset())
	m.HandleFunc("/metrics/resources", s.resourceMetrics)
	slis.SLIMetricsWithReset{}.Install(m)
	if s.settings.profiling {
		routes.Profiling{}.Install(m)
		if s.settings.contention {
			runtime.SetBlockProfileRate(1)
		}
		routes.DebugFlags{}.Install(m, "v", routes.StringFlagPutHandler(logs.GlogSetter))
	}
	return auth.wrap(m)
}

// resourceMetrics lists the resources of all pods, on the leader only, as upstream.
func (s *Scheduler) resourceMetrics(w http.ResponseWriter, req *http.Request) {
	if factory := s.informers.Load(); factory != nil && s.leading.Load() {
		resources.Handler((*factory).Core().V1().Pods().Lister()).ServeHTTP(w, req)
	}
}

// Port is the component that answers on 10259.
func (s *Scheduler) Port() *Port {
	return &Port{
		name: program.Scheduler + "-port", serving: s.options.SecureServing,
		authn: s.options.Authentication, authz: s.options.Authorization, handler: s.handler, live: s.live,
	}
}
