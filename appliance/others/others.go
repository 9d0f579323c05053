// Package others asks the other controllers of the cluster for their state, and answers
// them.
//
//	o := others.New(member, log)
//	server := status.NewServer(status.ServerConfig{Others: o.Controllers, …})
//	member.UseViews(o)
//	o.Exchange(server.Own) // before the member runs
//	go o.Run(ctx)
//
// The state passes over etcd's client port (2379), at Path: every controller can reach
// that of every other one, and it admits the certificates of controllers only. Where that port
// is on loopback, Listen opens one for the state alone at the same address. No quorum
// is needed, but a member serves this port only once it has had a first one. A member
// that has not answers on its peer port, and then it is known that it waits.
//
// A question carries the state of the controller that asks, so that two controllers know
// each other's state even if only one of them can connect to the other.
//
// Each controller is asked on its own, in the background and within a time limit, so that
// one that does not answer delays neither the page nor the others. A state holds no
// secret: it is a part of what the metrics address shows to every client.
package others

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/etcd"
	"kthwd/appliance/etcd/peers"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// Path is the path of a controller's state on etcd's client port.
const Path = "/kthwd/status"

const (
	every  = 5 * time.Second // pause between two rounds of questions
	within = 2 * time.Second // for one question
)

// Others knows the other controllers. Make one with New. Its methods may be called from
// any goroutine.
type Others struct {
	member  *etcd.Member
	log     *slog.Logger
	members func() []peer               // the other members of the cluster
	connect func() (*tls.Config, error) // how to ask them
	own     func() status.Controller    // the state of this controller; nil until Exchange

	state   http.Handler            // answers Path
	more    map[string]http.Handler // answers other paths, see Handle
	address string                  // see Listen
	server  *http.Server            // at address, used by Run only; nil while it is shut
	failed  string                  // why it could not be opened the last time

	mu        sync.Mutex
	known     map[uint64]status.Controller // by the member's ID
	told      map[uint64]time.Time         // when each has last told its state by itself
	transport *http.Transport              // keeps one connection to each controller; made at first use
}

// peer is another member of the cluster.
type peer struct {
	id             uint64
	name           string
	clients, peers []string // URLs
}

// New makes the Others of a member. It asks nobody before Run.
func New(member *etcd.Member, log *slog.Logger) *Others {
	o := &Others{member: member, log: log, known: map[uint64]status.Controller{}, told: map[uint64]time.Time{}}
	o.members, o.connect = o.membersOfCluster, o.clientTLS
	return o
}

// Run asks the other controllers until ctx ends.
func (o *Others) Run(ctx context.Context) {
	for ctx.Err() == nil {
		o.tend(len(o.members()))
		o.round(ctx)
		supervise.Sleep(ctx, every)
	}
	o.shut()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.transport != nil {
		o.transport.CloseIdleConnections()
	}
}

// Controllers returns what is known of the other controllers, sorted by name. It does not
// block.
func (o *Others) Controllers() []status.Controller {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make([]status.Controller, 0, len(o.known))
	for _, c := range o.known {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b status.Controller) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// round asks all other members at the same time, and forgets those that have left.
func (o *Others) round(ctx context.Context) {
	members := o.members()
	t, err := o.client()
	if err != nil {
		o.log.Debug("the other controllers are not asked", "err", err)
	}
	tell := o.ownState()
	var wait sync.WaitGroup
	for _, m := range members {
		wait.Go(func() { o.askOne(ctx, t, err, m, tell) })
	}
	wait.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	for id := range o.known {
		if !slices.ContainsFunc(members, func(m peer) bool { return m.id == id }) {
			delete(o.known, id)
			delete(o.told, id)
		}
	}
}

// askOne asks one member, unless there is no way to ask, and keeps the answer.
func (o *Others) askOne(ctx context.Context, t *http.Transport, noWay error, m peer, tell []byte) {
	state, failed := status.Controller{}, noWay
	if failed == nil {
		state, failed = ask(ctx, t, m, tell)
	}
	if ctx.Err() == nil {
		o.note(m, state, failed)
	}
}

// View implements etcd.Views.
func (o *Others) View(ctx context.Context, id uint64, fresh bool) (status.Controller, bool) {
	if fresh {
		members := o.members()
		if i := slices.IndexFunc(members, func(m peer) bool { return m.id == id }); i >= 0 {
			t, err := o.client()
			o.askOne(ctx, t, err, members[i], o.ownState())
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	c, known := o.known[id]
	return c, known && o.current(c)
}

// Elsewhere implements etcd.Views. A leader's own word comes first; one that cannot be reached
// from here is believed to lead when a follower that is ready names it.
func (o *Others) Elsewhere(since time.Time) (leader string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.known {
		switch {
		case !o.current(c) || !c.Answered.After(since):
		case c.Leads:
			return c.Name
		case c.Ready && c.Leader != c.Name && o.mayLead(c.Leader):
			leader = c.Leader
		}
	}
	return leader
}

// mayLead reports whether name is that of another controller which does not say itself that it
// does not lead. The caller holds mu.
func (o *Others) mayLead(name string) bool {
	for _, c := range o.known {
		if c.Name == name {
			return c.Leads || !o.current(c)
		}
	}
	return false
}

// Answering implements etcd.Views.
func (o *Others) Answering() (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.known {
		if o.current(c) {
			n++
		}
	}
	return n
}

// current tells whether a state is so new that it can be believed. The caller holds mu.
func (o *Others) current(c status.Controller) bool {
	return c.Error == "" && time.Since(c.Answered) < 3*every
}

// note keeps an answer. After a failure the last answer remains, with the reason, unless the
// member itself has told its state meanwhile.
func (o *Others) note(m peer, state status.Controller, failed error) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if failed == nil {
		state.Answered = now
		o.known[m.id] = state
		return
	}
	if now.Sub(o.told[m.id]) < every+2*within {
		return
	}
	last := o.known[m.id]
	last.Name = m.name
	if last.Error == "" {
		last.ErrorSince = now
	}
	last.Error = reason(failed)
	o.known[m.id] = last
}

// client returns the transport, which is made once etcd has its certificates.
func (o *Others) client() (*http.Transport, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.transport != nil {
		return o.transport, nil
	}
	config, err := o.connect()
	if err != nil {
		return nil, err
	}
	o.transport = &http.Transport{ // without a proxy: nothing within the cluster goes through one
		TLSClientConfig: config, TLSHandshakeTimeout: within, ResponseHeaderTimeout: within, MaxResponseHeaderBytes: 16 << 10,
		MaxIdleConnsPerHost: 1, IdleConnTimeout: 12 * every, DisableCompression: true,
	}
	return o.transport, nil
}

// clientTLS returns the configuration with which this member asks others: its own
// certificate, and certificates of controllers only from them.
func (o *Others) clientTLS() (*tls.Config, error) {
	server := o.member.Running()
	if server == nil {
		return nil, errors.New("etcd has not started")
	}
	info := server.Config().ClientTLSInfo
	if info.Empty() {
		return nil, errors.New("etcd's client port has no TLS")
	}
	config, err := info.ClientConfig()
	if err != nil {
		return nil, err
	}
	return controllersOnly(config, namesOf(server)), nil
}

// controllersOnly makes a client refuse every server that is no controller, after the
// usual verification.
func controllersOnly(config *tls.Config, names pki.ControllerNames) *tls.Config {
	config.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.VerifiedChains) == 0 || !names.Match(s.PeerCertificates[0]) {
			return errors.New("it has a certificate for " + peers.SubjectOf(s.PeerCertificates[0]) + ", which is no controller's")
		}
		return nil
	}
	return config
}

// namesOf returns the names that etcd's client port accepts; none means all.
func namesOf(server *embed.Etcd) pki.ControllerNames {
	info := server.Config().ClientTLSInfo
	return pki.ControllerNames{CommonNames: info.AllowedCNs, Hosts: info.AllowedHostnames}
}

// membersOfCluster lists the other members, as this one knows them.
func (o *Others) membersOfCluster() (all []peer) {
	server := o.member.Running()
	if server == nil {
		return nil
	}
	for _, m := range server.Server.Cluster().Members() {
		if m.ID == server.Server.MemberID() {
			continue
		}
		p := peer{id: uint64(m.ID), name: m.Name, clients: secure(m.ClientURLs), peers: secure(m.PeerURLs)}
		if p.name == "" {
			p.name = m.ID.String()
		}
		all = append(all, p)
	}
	return all
}

// secure returns the https URLs, without any path.
func secure(urls []string) (all []string) {
	for _, text := range urls {
		if u, err := url.Parse(text); err == nil && u.Scheme == "https" && u.Host != "" {
			all = append(all, "https://"+u.Host)
		}
	}
	return all
}
