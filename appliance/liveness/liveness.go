// Package liveness answers a service manager's question whether a running controller works: a
// watchdog that gets no answer ends the process, and the manager starts another one.
package liveness

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"k8s.io/client-go/rest"

	"kthwd/appliance/apiserver"
	"kthwd/appliance/etcd"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
)

// Probe answers questions about one controller. Its methods may be called from any goroutine
// until the group has stopped.
type Probe struct {
	group *supervise.Group
	etcd  *etcd.Member
	api   *apiserver.Server

	mu     sync.Mutex
	client *http.Client // for api's loopback address, made at first use
	server string
}

// New returns the probe of a controller: its components, its etcd and its API server.
func New(group *supervise.Group, member *etcd.Member, api *apiserver.Server) *Probe {
	return &Probe{group: group, etcd: member, api: api}
}

// Status returns the state record; see supervise.Group.Status.
func (p *Probe) Status() []supervise.Status { return p.group.Status() }

// Alive returns nil while this process works by itself: the state record answers, etcd
// reads its own data, and the API server's /livez succeeds. It does not depend on the
// other controllers, because a lost quorum does not justify a restart. It skips
// components that the record reports as not serving, and etcd while it rewrites its database,
// for as long as a slow disk needs for that.
func (p *Probe) Alive(ctx context.Context) error {
	serves := map[string]bool{}
	for _, s := range p.group.Status() {
		serves[s.Name] = s.Healthy()
	}
	if serves[program.Etcd] && !p.etcd.Rewriting() {
		if err := p.etcd.SerializableRead(ctx); err != nil {
			return fmt.Errorf("%s: a read of its own data: %w", program.Etcd, err)
		}
	}
	if serves[program.APIServer] {
		if err := p.livez(ctx); err != nil {
			return fmt.Errorf("%s: %w", program.APIServer, err)
		}
	}
	return nil
}

// livez queries the API server on its port. It excludes the check of etcd, which reads
// through the quorum (apiserver/pkg/storage/storagebackend/factory/etcd3.go).
func (p *Probe) livez(ctx context.Context) error {
	client, server, err := p.loopback()
	if err != nil {
		return err
	}
	return apiserver.Get(ctx, client, server+"/livez?exclude=etcd")
}

func (p *Probe) loopback() (*http.Client, string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil {
		return p.client, p.server, nil
	}
	config, err := p.api.Loopback()
	if err != nil {
		return nil, "", err
	}
	config.QPS = -1
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, "", err
	}
	p.client, p.server = client, config.Host
	return client, config.Host, nil
}
