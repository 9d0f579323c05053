// Package controllers runs kube-controller-manager and kube-scheduler, one term
// after another, each while it holds its lease.
//
// Manager and Scheduler are components. Each has a second one, its Port, which
// answers on 10257 or 10259 from the start of the process to its end, whether the
// program leads or not. Add the port before the program, which depends on it and on
// the API server. A term parses its command line again, because upstream's options
// can be used only once.
//
// ParseManager and ParseScheduler check a command line before anything starts.
// ReadSettings returns the part of the scheduler's configuration that kthwd needs.
// Alive is the health check that both ports show.
//
// Both programs share process-wide registries with the rest of Kubernetes (informer
// names, configz), which each term resets first: there can be one Manager and one
// Scheduler in a process. Leader election is not upstream's; see package lease.
package controllers

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/healthz"
	genericoptions "k8s.io/apiserver/pkg/server/options"
	genericcontrollermanager "k8s.io/controller-manager/app"

	"kthwd/appliance/supervise"
)

// Alive is the health check of 10257 and 10259: unhealthy when the
// component has been trying to come back for longer than upstream's own
// watchdog allows a lease to be overdue (20 s).
func Alive(g *supervise.Group, component string) healthz.HealthChecker {
	return healthz.NamedCheck("leaderElection", func(*http.Request) error {
		for _, s := range g.Status() {
			if s.Name == component && s.Restarts > 0 && s.State == supervise.Starting && time.Since(s.Since) > 20*time.Second {
				return fmt.Errorf("%s: %s", s.Name, s.Reason)
			}
		}
		return nil
	})
}

// Port is 10257 or 10259. The port belongs to kthwd for the whole life
// of the process, so that /healthz answers on leader and standby alike and
// across terms.
type Port struct {
	name    string
	serving *genericoptions.SecureServingOptions
	authn   *genericoptions.DelegatingAuthenticationOptions
	authz   *genericoptions.DelegatingAuthorizationOptions
	handler func(*servingAuth) http.Handler
	live    *Live
}

var _ supervise.Component = (*Port)(nil)

// servingAuth authenticates and authorizes callers through the API server;
// /healthz, /readyz and /livez are open to all, as upstream.
type servingAuth struct {
	authn genericapiserver.AuthenticationInfo
	authz genericapiserver.AuthorizationInfo
}

func (a *servingAuth) wrap(h http.Handler) http.Handler {
	return genericcontrollermanager.BuildHandlerChain(h, &a.authz, &a.authn)
}

// Name implements supervise.Component.
func (s *Port) Name() string { return s.name }

// Run implements supervise.Component. It is ready as soon as the port is open.
func (s *Port) Run(ctx context.Context, ready func()) error {
	if err := s.serving.MaybeDefaultWithSelfSignedCerts("localhost", nil, []net.IP{net.IPv4(127, 0, 0, 1)}); err != nil {
		return err
	}
	var serving *genericapiserver.SecureServingInfo
	if err := s.serving.ApplyTo(&serving); err != nil {
		return err
	}
	if serving == nil { // secure-port=0
		ready()
		<-ctx.Done()
		return nil
	}
	if s.authn != nil && s.authz != nil {
		s.authn.RemoteKubeConfigFile = s.live.of(s.authn.RemoteKubeConfigFile)
		s.authz.RemoteKubeConfigFile = s.live.of(s.authz.RemoteKubeConfigFile)
	}
	auth := &servingAuth{}
	if err := s.authn.ApplyTo(&auth.authn, serving, nil); err != nil {
		return fmt.Errorf("authentication: %w", err)
	}
	if err := s.authz.ApplyTo(&auth.authz); err != nil {
		return fmt.Errorf("authorization: %w", err)
	}
	stopped, _, err := serving.Serve(s.handler(auth), 2*time.Second, ctx.Done())
	if err != nil {
		return err
	}
	ready()
	<-stopped
	return nil
}
