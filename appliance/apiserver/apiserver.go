// Package apiserver runs kube-apiserver as a component.
//
// Run waits until etcd serves a linearizable read, builds the server, serves, and
// calls ready when /readyz succeeds for a client that verifies the certificate. A
// build that fails without a quorum is repeated; any other failure ends Run.
// Begin starts the first half of the build before there is a quorum; call it at
// most once, before Run, and only when etcd's socket is open.
//
// The order of a stop: supervise.Leaving ends first, and /readyz fails from then
// on; the server leaves the endpoints of the kubernetes service, keeps serving for
// the shutdown delay, tells clients to reconnect elsewhere, and then drains. etcd
// must outlive it. Without a quorum the drain would hang, so it asks etcd to
// abandon the waiting requests.
//
// Two start-up hooks of upstream end the process when etcd is slow; bootstrap.go
// replaces them. The package sets no feature gates: the caller does, once, before
// Run.
package apiserver

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/rest"

	"kthwd/appliance/apiserver/access"
	"kthwd/appliance/apiserver/identitylease"
	"kthwd/appliance/cause"
	"kthwd/appliance/encryption/gate"
	"kthwd/appliance/etcd"
	"kthwd/appliance/lease"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/refused"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/tokenrotation"
	"kthwd/appliance/upstream"
	"kthwd/appliance/workers"
)

const readyTimeout = time.Second

const quorumProof = 5 * time.Second // bounds one linearizable read

const rebuildPause = 2 * time.Second

const hopelessGrace = 4 * time.Second // longer than its drain

// connectionGrace is how long a stop waits for connections on which no request is under way that
// it waits for anyway: streams such as kubectl logs --follow, which nothing ends, and HTTP/2
// connections that were accepted in the moment of the stop, which net/http never tells to
// close (server.go: "Mark freshly created HTTP/2 as active"). Upstream waits a minute.
const connectionGrace = 5 * time.Second

// Config is the input of New.
type Config struct {
	Args       []program.Arg // kube-apiserver's command line, without feature gates
	Server     string        // its URL on this machine: https://127.0.0.1:6443
	Layout     pki.Layout
	Etcd       *etcd.Member
	Fences     *lease.Fences
	UsersDelay bool // the user's flags set how long to serve while leaving
	Log        *slog.Logger

	// Workers decides about the certificates of nodes; nil for nobody.
	Workers *workers.Desk

	// Encryption replaces the encryption configuration; nil for nobody.
	Encryption *gate.Gate

	// Lists are certificates that are refused, and Tried is called for each request with one. It
	// must not block; nil for none.
	Lists []*refused.List
	Tried access.TriedFunc

	// Seen is called for a certificate that a client has come with, again for each connection. It
	// must not block; nil for none.
	Seen func(cert *x509.Certificate)

	// Used is called for each request that is accepted from a client with a certificate, with its
	// user and HOST:PORT. It must not block; nil for none.
	Used func(cert *x509.Certificate, user, address string)

	// Signed is called before a certificate is stored that was signed for a request. Its error
	// keeps the certificate from being given away; nil for none.
	Signed SignedFunc

	// Refused is called for each bearer token that is not accepted, with the client's
	// HOST:PORT. It must not block; nil for none.
	Refused func(token, address string)

	// Accepted is called for each bearer token that is accepted, with its user and the client's
	// HOST:PORT, which is empty for a TokenReview. It must not block; nil for none.
	Accepted func(token, user, address string)

	// TokenKeys has the keys of service account tokens; nil for those of the files at each start.
	TokenKeys *tokenrotation.Keys
}

// Server runs kube-apiserver. Make one with New.
type Server struct {
	args       []program.Arg
	server     string
	layout     pki.Layout
	etcd       *etcd.Member
	fences     *lease.Fences
	usersDelay bool
	refused    func(token, address string)
	accepted   func(token, user, address string)
	tokenKeys  *tokenrotation.Keys
	workers    *workers.Desk
	encryption *gate.Gate
	lists      []*refused.List
	tried      access.TriedFunc
	seen       func(*x509.Certificate)
	used       func(cert *x509.Certificate, user, address string)
	signed     SignedFunc
	log        *slog.Logger

	early chan configured // the first half of the first build, once Begin was called

	mu        sync.Mutex
	loopback  *rest.Config
	informers informers.SharedInformerFactory
	identity  *identitylease.Lease
	running   *built // nil until it serves
}

var _ supervise.Component = (*Server)(nil)

// New prepares a server. It opens and builds nothing.
func New(c Config) *Server {
	return &Server{
		args: c.Args, server: c.Server, layout: c.Layout, etcd: c.Etcd,
		fences: c.Fences, usersDelay: c.UsersDelay, refused: c.Refused, workers: c.Workers, encryption: c.Encryption, log: c.Log,
		accepted: c.Accepted, tokenKeys: c.TokenKeys,
		lists: c.Lists, tried: c.Tried, seen: c.Seen, used: c.Used, signed: c.Signed,
	}
}

// Name implements supervise.Component.
func (a *Server) Name() string { return program.APIServer }

// Run implements supervise.Component. It is ready when /readyz succeeds for a client
// that verifies the certificate.
//
// The server is built only after etcd has served a linearizable read, because its
// bootstrap hooks end the process if they cannot write for 30 s to 5 min
// (apiserver/pkg/server/hooks.go:runPostStartHook). A build that fails before the port
// is open, because the quorum was lost again, is repeated. A failure with a healthy etcd,
// or after the port was open, ends kthwd.
func (a *Server) Run(ctx context.Context, ready func()) error {
	report := supervise.Report(ctx)
	for ctx.Err() == nil {
		if !a.awaitQuorum(ctx, report) {
			return nil
		}
		report.Starting("building the API server")
		a.loadRefused(ctx)
		prepared, err := a.build(supervise.Leaving(ctx))
		switch {
		case err == nil:
			return a.serve(ctx, prepared, ready)
		case errors.Is(err, errLeaving):
			<-ctx.Done() // soon: all that depend on it have not begun
			return nil
		}
		if a.quorum(ctx) == nil {
			return err
		}
		a.log.Warn("not built, etcd has no quorum: trying again", "err", err)
		report.Restarted("no_quorum", err)
		supervise.Sleep(ctx, rebuildPause)
	}
	return nil
}

// awaitQuorum waits until etcd serves a linearizable read. It returns false if ctx ends
// first.
func (a *Server) awaitQuorum(ctx context.Context, report supervise.Reporter) bool {
	for ctx.Err() == nil {
		err := a.quorum(ctx)
		if err == nil {
			return true
		}
		report.Waiting("waiting for etcd quorum")
		supervise.Sleep(ctx, etcd.ReadyPoll)
	}
	return false
}

func (a *Server) quorum(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quorumProof)
	defer cancel()
	return a.etcd.LinearizableRead(ctx)
}

// Begin starts the first build before a quorum exists, up to the point where upstream
// needs one. Call it at most once, before Run, when etcd's socket is open. Most of that
// half is the RSA key of the loopback certificate, 0.2 s on one core, which needs no
// elected leader (apiserver/pkg/server/options/serving_with_loopback.go).
func (a *Server) Begin() {
	early := make(chan configured, 1)
	a.early = early
	go func() {
		config, err := a.configure()
		early <- configured{config, err}
	}()
}

// serve runs the server until ctx ends and its drain is over.
func (a *Server) serve(ctx context.Context, s *built, ready func()) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	done := make(chan error, 1)
	a.mu.Lock()
	a.running = s
	a.mu.Unlock()
	s.generic.ShutdownTimeout = connectionGrace
	var own *upstream.Connections // of this process to itself
	if loopback, err := a.Loopback(); err == nil {
		own = upstream.ConnectionsOf(loopback)
	}
	go func() { done <- s.run(running) }()
	go func() {
		select {
		case <-supervise.Leaving(ctx).Done():
		case <-ctx.Done():
		case <-running.Done():
			return
		}
		rest := a.leave(ctx, s)
		s.identity.Leave()
		s.generic.ShutdownDelayDuration = rest
		stop()
		supervise.Sleep(ended, rest)
		if own != nil {
			own.KeepHangingUp(ended)
		}
	}()
	probing, stopProbing := context.WithCancel(ctx)
	defer stopProbing()
	go a.probe(probing, func() {
		s.servedOnce.Store(true)
		ready()
	})
	select {
	case err := <-done:
		return err
	case <-a.etcd.Abandoned():
		return a.hopeless(ctx, done)
	}
}

// hopeless waits briefly for a server that stops while etcd answers nothing. The server's own lease
// is renewed in a loop that only a success ends (component-helpers/apimachinery/lease/
// controller.go:backoffEnsureLease), and etcd answers every request with an error, so
// the server may never return; the process is about to end.
func (a *Server) hopeless(ctx context.Context, done <-chan error) error {
	<-ctx.Done()
	select {
	case err := <-done:
		return err
	case <-time.After(hopelessGrace):
		a.log.Warn("not waited for any longer: etcd answers nothing, so it cannot end in order")
		return nil
	}
}

// Loopback returns the server's own privileged client configuration, for the RBAC seed.
// It fails until the server is built.
func (a *Server) Loopback() (*rest.Config, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.loopback == nil {
		return nil, errors.New("the API server is not built yet")
	}
	return rest.CopyConfig(a.loopback), nil
}

// Findings returns what is wrong with the server's identity Lease.
func (a *Server) Findings() []status.Finding {
	a.mu.Lock()
	who := a.identity
	a.mu.Unlock()
	if who == nil {
		return nil
	}
	return who.Findings(cause.Names{Kubeconfig: a.layout.Kubeconfig(pki.NameAdmin), Webhooks: a.Webhooks()})
}

// LoopbackCertificate returns the certificate that the API server makes for itself in
// memory, valid for a year; nil until then (apiserver/pkg/server/options/serving_with_loopback.go).
func (a *Server) LoopbackCertificate() []status.Certificate {
	loopback, err := a.Loopback()
	if err != nil {
		return nil
	}
	block, _ := pem.Decode(loopback.CAData)
	if block == nil {
		return nil
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return []status.Certificate{{File: "kube-apiserver, in memory", Subject: "loopback", Use: "server", NotAfter: c.NotAfter}}
}
