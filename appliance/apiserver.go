package appliance

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"
	apiapp "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"kthwd/appliance/pki"
	"kthwd/appliance/supervise"
)

const (
	readyPoll    = 20 * time.Millisecond
	readyTimeout = time.Second
	quorumProof  = 5 * time.Second // one linearizable read
	rebuildPause = 2 * time.Second

	hopelessGrace = 4 * time.Second // more than its drain takes
)

// apiServer runs kube-apiserver.
type apiServer struct {
	args   []arg
	server string // https://127.0.0.1:6443
	layout pki.Layout
	etcd   *etcd
	fences *fences
	log    *slog.Logger
	early  chan configured // the first half of the first build, once begin was called

	usersDelay bool // the user's flags say for how long to serve while leaving

	mu       sync.Mutex
	loopback *rest.Config
}

// configured is the first half of a build: what apiapp.NewConfig returned.
type configured struct {
	config *apiapp.Config
	err    error
}

var _ supervise.Component = (*apiServer)(nil)

// Name implements supervise.Component.
func (a *apiServer) Name() string { return nameAPIServer }

// Run implements supervise.Component. It is ready when /readyz says so to a
// client that verifies the certificate.
//
// The server is built only once etcd has served a linearizable read, because its
// bootstrap hooks end the process when they cannot write for 30 s to 5 min
// (apiserver/pkg/server/hooks.go:runPostStartHook). What fails before the port
// is open, because the quorum went away again, is built anew; what fails with a
// healthy etcd, or after the port was open, ends kthwd.
func (a *apiServer) Run(ctx context.Context, ready func()) error {
	report := supervise.Report(ctx)
	for ctx.Err() == nil {
		if !a.awaitQuorum(ctx, report) {
			return nil
		}
		report.Starting("building the API server")
		prepared, err := a.build()
		if err == nil {
			return a.serve(ctx, prepared, ready)
		}
		if a.quorum(ctx) == nil {
			return err
		}
		a.log.Warn("not built, etcd has no quorum: trying again", "err", err)
		report.Restarted("no_quorum", err)
		sleep(ctx, rebuildPause)
	}
	return nil
}

// awaitQuorum waits until etcd serves a linearizable read; false when ctx ends first.
func (a *apiServer) awaitQuorum(ctx context.Context, report supervise.Reporter) bool {
	for ctx.Err() == nil {
		err := a.quorum(ctx)
		if err == nil {
			return true
		}
		report.Waiting("waiting for etcd quorum")
		sleep(ctx, readyPoll)
	}
	return false
}

func (a *apiServer) quorum(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quorumProof)
	defer cancel()
	return a.etcd.LinearizableRead(ctx)
}

// server has everything but an open handler.
type server struct {
	farewell
	generic *genericapiserver.GenericAPIServer
	run     func(ctx context.Context) error
}

// begin starts the first build before there is a quorum, up to the point where
// upstream needs one. It is called at most once, before Run, when etcd's socket is
// open. Most of that half is the RSA key of the loopback certificate, 0.2 s on one
// core, for which a lone etcd need not be elected (apiserver/pkg/server/options/
// serving_with_loopback.go).
func (a *apiServer) begin() {
	early := make(chan configured, 1)
	a.early = early
	go func() {
		config, err := a.configure()
		early <- configured{config, err}
	}()
}

// build is kube-apiserver/app/server.go:Run up to its last line, with the two
// bootstrap hooks replaced and the OpenAPI documents built side by side.
func (a *apiServer) build() (*server, error) {
	config, err := a.configuration()
	if err != nil {
		return nil, err
	}
	server, err := a.assemble(config)
	if err != nil {
		// NewConfig has opened the port; whoever fails later must close it.
		return nil, errors.Join(err, config.KubeAPIs.ControlPlane.Generic.SecureServing.Listener.Close())
	}
	a.mu.Lock()
	a.loopback = rest.CopyConfig(config.KubeAPIs.ControlPlane.Generic.LoopbackClientConfig)
	a.mu.Unlock()
	return server, nil
}

// configuration is what begin has made, once, and made now after that.
func (a *apiServer) configuration() (*apiapp.Config, error) {
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
func (a *apiServer) configure() (*apiapp.Config, error) {
	opts, err := parseAPIServer(a.args, a.etcd.controllerNames())
	if err != nil {
		return nil, err
	}
	completed, err := opts.Complete(context.Background())
	if err != nil {
		return nil, err
	}
	config, err := apiapp.NewConfig(completed)
	if err != nil && completed.SecureServing.Listener != nil {
		err = errors.Join(err, completed.SecureServing.Listener.Close())
	}
	return config, err
}

func (a *apiServer) assemble(config *apiapp.Config) (*server, error) {
	register := leaveOutBootstrapHooks(config.KubeAPIs.ControlPlane.Generic, a.log)
	installOpenAPI := leaveOutOpenAPI(config.KubeAPIs.ControlPlane.Generic)
	rememberClients(config)
	s := &server{}
	front := &config.Aggregator.GenericConfig.Config
	front.BuildHandlerChainFunc = a.fences.chained(s.chained(front.BuildHandlerChainFunc))
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
	if err := installOpenAPI(chain.GenericAPIServer.NextDelegate()); err != nil {
		return nil, err
	}
	s.generic = chain.GenericAPIServer
	if err := s.generic.AddReadyzChecks(s.readyz()); err != nil {
		return nil, err
	}
	prepared, err := chain.PrepareRun()
	s.run = prepared.Run
	return s, err
}

// serve runs the server until ctx ends and its drain is over.
func (a *apiServer) serve(ctx context.Context, s *server, ready func()) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan error, 1)
	go func() { done <- s.run(running) }()
	go func() {
		select {
		case <-supervise.Leaving(ctx).Done():
		case <-ctx.Done():
		case <-running.Done():
			return
		}
		rest := a.leave(ctx, s)
		s.generic.ShutdownDelayDuration = rest
		stop()
	}()
	probing, stopProbing := context.WithCancel(ctx)
	defer stopProbing()
	go a.probe(probing, func() {
		s.welcome.Store(true)
		ready()
	})
	select {
	case err := <-done:
		return err
	case <-a.etcd.hope.ctx.Done():
		return a.hopeless(ctx, done)
	}
}

// hopeless waits for a server that stops without a quorum, but not for long: its own
// lease is held in a loop that only a success ends (component-helpers/apimachinery/
// lease/controller.go:backoffEnsureLease). It can do nothing any more, for etcd
// answers all with an error, and the process is about to end.
func (a *apiServer) hopeless(ctx context.Context, done <-chan error) error {
	<-ctx.Done()
	select {
	case err := <-done:
		return err
	case <-time.After(hopelessGrace):
		a.log.Warn("not waited for any longer: without a quorum it cannot end in order")
		return nil
	}
}

// probe polls /readyz until it is ok once, then calls ready.
func (a *apiServer) probe(ctx context.Context, ready func()) {
	report := supervise.Report(ctx)
	client, err := a.client()
	if err != nil {
		report.Starting(err.Error())
		return
	}
	defer client.CloseIdleConnections()
	for last := ""; ctx.Err() == nil; {
		err := get(ctx, client, a.server+"/readyz")
		if err == nil {
			ready()
			return
		}
		if err.Error() != last {
			last = err.Error()
			a.log.Debug("not ready yet", "reason", last)
			report.Starting(last)
		}
		sleep(ctx, readyPoll)
	}
}

// client verifies the API server against the CA and shows the certificate that
// has no other right.
func (a *apiServer) client() (*http.Client, error) {
	pool, err := pki.Pool(a.layout.CA())
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(a.layout.Cert(pki.NameHealth), a.layout.Key(pki.NameHealth))
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout:   readyTimeout,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}},
	}, nil
}

// get asks url and returns the first line of what is wrong.
func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	for line := range strings.SplitSeq(string(body), "\n") {
		if check, failing := strings.CutPrefix(line, "[-]"); failing {
			return fmt.Errorf("%s: %s", req.URL.Path, check)
		}
	}
	return fmt.Errorf("%s: %s", req.URL.Path, resp.Status)
}

// Loopback is the server's own privileged client configuration, for the RBAC
// seed. It fails until the server is built.
func (a *apiServer) Loopback() (*rest.Config, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.loopback == nil {
		return nil, errors.New("the API server is not built yet")
	}
	return rest.CopyConfig(a.loopback), nil
}

// parseAPIServer reads a kube-apiserver command line with upstream's own options.
// Nobody is given a certificate with one of the controllers' names.
func parseAPIServer(args []arg, controllers pki.ControllerNames) (*apioptions.ServerRunOptions, error) {
	opts := apioptions.NewServerRunOptions()
	protectControllerNames(opts, controllers)
	return opts, parseFlags(nameAPIServer, opts.Flags(), args)
}
