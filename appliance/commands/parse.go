package commands

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	basecompatibility "k8s.io/component-base/compatibility"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	kcmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"kthwd/appliance/advice"
	"kthwd/appliance/apiserver"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/config"
	"kthwd/appliance/controllers"
	"kthwd/appliance/etcdline"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// Programs are the options of kube-controller-manager and kube-scheduler, parsed.
// The API server's can be used only once, so it parses its own.
type Programs struct {
	Manager   *kcmoptions.KubeControllerManagerOptions
	Scheduler *schedoptions.Options
	Settings  controllers.Settings // of the scheduler

	api *apioptions.ServerRunOptions
}

// Parse parses the command lines of kube-controller-manager and kube-scheduler after Check
// has set the feature gates. It validates nothing but the scheduler's settings.
func (l *Lines) Parse() (*Programs, error) {
	p := &Programs{}
	err := p.parseControllers(cmdline.WithoutGates(l.Args[program.ControllerManager]), cmdline.WithoutGates(l.Args[program.Scheduler]))
	if err == nil {
		p.Settings, err = controllers.ReadSettings(p.Scheduler)
	}
	return p, advice.Usage(err)
}

func (p *Programs) parseControllers(manager, scheduler []program.Arg) error {
	var errs [2]error
	p.Manager, errs[0] = controllers.ParseManager(manager)
	p.Scheduler, errs[1] = controllers.ParseScheduler(scheduler)
	return errors.Join(errs[:]...)
}

// parseAll parses all four command lines.
func (l *Lines) parseAll() (*Programs, error) {
	p := &Programs{}
	_, etcdErr := etcdline.Parse(l.Args[program.Etcd], embed.NewZapLoggerBuilder(zap.NewNop()))
	gatesErr := cmdline.CheckGates(l.Args)
	var apiErr error
	p.api, apiErr = apiserver.Parse(l.Args[program.APIServer], pki.ControllerNames{})
	return p, advice.Usage(errors.Join(etcdErr, gatesErr, apiErr, p.parseControllers(l.Args[program.ControllerManager], l.Args[program.Scheduler])))
}

// validate parses all four command lines, sets the feature gates, and validates with
// upstream's own code.
func (l *Lines) validate(c config.Controller) error {
	p, err := l.parseAll()
	if err != nil {
		return err
	}
	registry := p.api.GenericServerRunOptions.ComponentGlobalsRegistry
	if err := registry.Set(); err != nil {
		return advice.Usage(fmt.Errorf("feature gates: %w", err))
	}
	registry.AddMetrics()
	if gates, ok := registry.FeatureGateFor(basecompatibility.DefaultKubeComponent).(interface{ AddMetrics() }); ok {
		gates.AddMetrics()
	}
	return advice.Usage(p.validate(c))
}

func (p *Programs) validate(c config.Controller) error {
	var errs []error
	add := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	completed, err := p.api.Complete(context.Background())
	add(program.APIServer, err)
	if err == nil {
		for _, err := range completed.Validate() {
			errs = append(errs, hinted(fmt.Errorf("%s: %w", program.APIServer, err), c))
		}
		if len(errs) == 0 { // loads the CAs, the keys of service accounts and --authentication-config
			_, err := completed.Authentication.ToAuthenticationConfig()
			add(program.APIServer, err)
		}
	}
	add(program.ControllerManager, p.Manager.Validate(kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases()))
	p.Settings, err = controllers.ReadSettings(p.Scheduler)
	if err != nil {
		errs = append(errs, err)
	} else if p.Scheduler.ComponentConfig != nil {
		add(program.Scheduler, errors.Join(p.Scheduler.Validate()...))
	}
	return errors.Join(errs...)
}

// hinted adds advice to an error about the families of addresses, which a machine
// without IPv4 meets with the default ranges.
func hinted(err error, c config.Controller) error {
	first, _, _ := strings.Cut(c.ServiceClusterIPRange, ",")
	prefix, parseErr := netip.ParsePrefix(first)
	advertised := net.ParseIP(c.AdvertiseAddress)
	if parseErr != nil || advertised == nil || prefix.Addr().Is4() == (advertised.To4() != nil) || !strings.Contains(err.Error(), "family") {
		return err
	}
	if advertised.To4() != nil {
		return advice.With(err, "name an IPv4 range first in --service-cluster-ip-range, or an IPv6 address of this machine as --advertise-address")
	}
	return advice.With(err, "this machine is reached at an IPv6 address: set --service-cluster-ip-range and --cluster-cidr to IPv6 ranges, such as fd00:10:32::/112 and fd00:10:200::/48; or set --advertise-address to an IPv4 address")
}
