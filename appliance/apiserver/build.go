package apiserver

import (
	"context"
	"errors"

	"k8s.io/apiserver/pkg/registry/generic"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"
	apiapp "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"kthwd/appliance/apiserver/access"
	"kthwd/appliance/apiserver/bootstrap"
	"kthwd/appliance/apiserver/identitylease"
	"kthwd/appliance/apiserver/openapi"
	"kthwd/appliance/apiserver/watchcache"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// configured is the first half of a build: the result of apiapp.NewConfig.
type configured struct {
	config *apiapp.Config
	err    error
}

// built is a server that is complete except for its open handler.
type built struct {
	departure
	leaving  chan struct{} // closed when it begins to stop
	identity *identitylease.Lease
	generic  *genericapiserver.GenericAPIServer
	run      func(ctx context.Context) error
}

// errLeaving is the error of a build during which kthwd began to stop.
var errLeaving = errors.New("kthwd stops")

// build does the work of kube-apiserver/app/server.go:Run up to its last line, with the
// two bootstrap hooks replaced and the OpenAPI documents built in parallel. A server is
// not worth running once leaving has ended: on a busy machine it needs longer to start its caches,
// before it can stop, than a stop may take.
func (a *Server) build(leaving context.Context) (*built, error) {
	config, err := a.configuration()
	if err != nil {
		return nil, err
	}
	server, err := (*built)(nil), errLeaving
	if leaving.Err() == nil {
		server, err = a.assemble(config)
	}
	if err == nil && leaving.Err() != nil {
		server.generic.Destroy()
		err = errLeaving
	}
	if err != nil {
		// NewConfig has opened the port, so a later failure must close it.
		return nil, errors.Join(err, config.KubeAPIs.ControlPlane.Generic.SecureServing.Listener.Close())
	}
	a.mu.Lock()
	a.identity = server.identity
	a.loopback = rest.CopyConfig(config.KubeAPIs.ControlPlane.Generic.LoopbackClientConfig)
	a.mu.Unlock()
	return server, nil
}

// configuration returns the result of Begin the first time, and a new one after that.
func (a *Server) configuration() (*apiapp.Config, error) {
	if early := a.early; early != nil {
		a.early = nil
		made := <-early
		if made.err == nil {
			return made.config, nil
		}
		a.log.Debug("not configured before the quorum", "err", made.err) // upstream waits 20 s for etcd
	}
	return a.configure()
}

// configure reads the files, opens the port and connects to etcd.
func (a *Server) configure() (*apiapp.Config, error) {
	opts, err := parse(a.args, identityPlugin{names: a.etcd.ControllerNames(), desk: a.workers, signed: a.signed})
	if err != nil {
		return nil, err
	}
	hash := a.reloadable(opts.Etcd)
	completed, err := opts.Complete(context.Background())
	if err != nil {
		return nil, err
	}
	var config *apiapp.Config
	if err = a.liveTokens(completed); err == nil {
		config, err = apiapp.NewConfig(completed)
	}
	if err == nil {
		a.gateEncryption(config.KubeAPIs.ControlPlane.Generic, hash)
		err = access.SplitAudit(&config.Aggregator.GenericConfig.Config, completed.Audit)
	}
	if err != nil && completed.SecureServing.Listener != nil {
		err = errors.Join(err, completed.SecureServing.Listener.Close())
	}
	return config, err
}

func (a *Server) assemble(config *apiapp.Config) (*built, error) {
	register := bootstrap.LeaveOutHooks(config.KubeAPIs.ControlPlane.Generic, a.log)
	who := &identitylease.Lease{}
	registerIdentity := who.Replace(&config.KubeAPIs.ControlPlane)
	setStorage(config)
	documents := openapi.LeaveOut(config.KubeAPIs.ControlPlane.Generic, a.log)
	access.RememberClients(config, a.seen, a.used)
	access.ListenToAcceptances(config, a.accepted)
	access.ListenToRefusals(config, a.refused)
	access.RefuseCertificates(config, a.lists, a.tried)
	a.keepWebhooks(config.KubeAPIs.ControlPlane.VersionedInformers)
	s := &built{identity: who, leaving: make(chan struct{})}
	front := &config.Aggregator.GenericConfig.Config
	front.Authorization.Authorizer = access.WaitForRights(front.Authorization.Authorizer, config.KubeAPIs.ControlPlane.VersionedInformers)
	front.BuildHandlerChainFunc = access.Bounded(access.EndingRefused(a.lists, a.welcomed(a.fences.Wrap(s.chained(front.BuildHandlerChainFunc)))))
	completed, err := config.Complete()
	if err != nil {
		return nil, err
	}
	chain, err := apiapp.CreateServerChain(completed)
	if err != nil {
		return nil, err
	}
	if err := register(chain.GenericAPIServer); err != nil {
		return nil, err
	}
	if err := registerIdentity(chain.GenericAPIServer); err != nil {
		return nil, err
	}
	if err := documents.Install(chain.GenericAPIServer.NextDelegate()); err != nil {
		return nil, err
	}
	s.generic = chain.GenericAPIServer
	if err := s.generic.AddReadyzChecks(s.readyz(), a.knowsRefused()); err != nil {
		return nil, err
	}
	prepared, err := chain.PrepareRun()
	documents.Prepared()
	s.run = prepared.Run
	return s, err
}

// setStorage gives all three servers watch caches whose lists wait for no tick, and shared connections to etcd.
func setStorage(config *apiapp.Config) {
	for _, getter := range []*generic.RESTOptionsGetter{
		&config.KubeAPIs.ControlPlane.Generic.RESTOptionsGetter,
		&config.ApiExtensions.GenericConfig.RESTOptionsGetter,
		&config.ApiExtensions.ExtraConfig.CRDRESTOptionsGetter,
		&config.Aggregator.GenericConfig.RESTOptionsGetter,
	} {
		*getter = watchcache.Prompt(*getter)
	}
}

// Parse reads a kube-apiserver command line with upstream's own options, and adds the
// admission plugin that protects the names of controllers.
func Parse(args []program.Arg, controllers pki.ControllerNames) (*apioptions.ServerRunOptions, error) {
	return parse(args, identityPlugin{names: controllers})
}

func parse(args []program.Arg, plugin identityPlugin) (*apioptions.ServerRunOptions, error) {
	opts := apioptions.NewServerRunOptions()
	protectControllerNames(opts, plugin)
	return opts, cmdline.Parse(program.APIServer, opts.Flags(), args)
}
