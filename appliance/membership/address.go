package membership

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"

	"kthwd/appliance/membership/change"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// KindAddress is the kind of the finding about a peer URL that is not this controller's.
const KindAddress = "peer_url"

// addressPoll is the pause between two attempts to correct the peer URL.
const addressPoll = 5 * time.Second

// readdressing is this controller's peer URL in the membership, which must be the one that it
// listens at: otherwise the others cannot connect to it.
type readdressing struct {
	found atomic.Pointer[status.Finding]
}

// Findings reports a peer URL that is not this controller's, as long as it is not corrected. It
// never blocks.
func (m *Members) Findings() []status.Finding {
	all := m.refused.Findings(time.Now())
	if f := m.address.found.Load(); f != nil {
		all = append(all, *f)
	}
	return all
}

// keepAddress compares the peer URL of this controller in the membership with the one that it
// has, and corrects it through the quorum. That is safe, since nobody is at the old one: what
// listens here is the member with its data, and it listens at its present address only. It is
// not done while another machine answers at the old URL as a controller: that one may be the
// member, and this machine a copy. It blocks until the two agree or ctx ends.
func (m *Members) keepAddress(ctx context.Context, server *embed.Etcd) {
	began := time.Now()
	for ctx.Err() == nil {
		was, is := m.peerURLs(server)
		if len(was) == 0 || slices.Equal(was, is) {
			m.address.found.Store(nil)
			return
		}
		err := m.correctAddress(ctx, server, was, is)
		if err == nil {
			m.log.Info("peer URL changed in the membership", "was", strings.Join(was, ","), "is", strings.Join(is, ","))
			m.forgetEndpoint(ctx, was, is)
			continue
		}
		m.address.found.Store(&status.Finding{
			Health: status.Degraded, Kind: KindAddress, Since: began,
			Text: fmt.Sprintf("the members of etcd know %s at %s, and it listens at %s: %v", m.cfg.Name, strings.Join(was, ","), strings.Join(is, ","), err),
			Do:   "kthwd member list shows which members are up: the change needs a quorum; kthwd tries again by itself",
		})
		supervise.Sleep(ctx, addressPoll)
	}
}

// peerURLs returns this member's peer URLs in the membership, and those that it advertises.
func (m *Members) peerURLs(server *embed.Etcd) (was, is []string) {
	if self := server.Server.Cluster().Member(server.Server.MemberID()); self != nil {
		was = slices.Sorted(slices.Values(self.PeerURLs))
	}
	cfg := server.Config()
	for _, u := range cfg.AdvertisePeerUrls {
		is = append(is, u.String())
	}
	return was, slices.Sorted(slices.Values(is))
}

func (m *Members) correctAddress(ctx context.Context, server *embed.Etcd, was, is []string) error {
	ctx, cancel := context.WithTimeout(ctx, change.Timeout)
	defer cancel()
	for _, e := range server.Server.Cluster().Members() {
		if e.ID != server.Server.MemberID() && slices.ContainsFunc(e.PeerURLs, func(u string) bool { return slices.Contains(is, u) }) {
			return fmt.Errorf("that is the peer URL of %s", e.Name)
		}
	}
	for _, old := range was {
		if m.answers(ctx, old) {
			return fmt.Errorf("another controller answers at %s: stop one of the two", old)
		}
	}
	_, err := server.Server.UpdateMember(ctx, membership.Member{ID: server.Server.MemberID(), RaftAttributes: membership.RaftAttributes{PeerURLs: is}})
	return change.Explain(err)
}

// answers reports whether a controller on another machine answers at a peer URL.
func (m *Members) answers(ctx context.Context, peerURL string) bool {
	u, err := url.Parse(peerURL)
	if err != nil || u.Scheme != "https" || isLocal(u.Hostname()) {
		return false
	}
	config, err := pki.ClientTLS(m.layout)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, peerURL+"/version", nil)
	if err != nil {
		return false
	}
	resp, err := (&http.Transport{TLSClientConfig: config, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return m.etcd.PeerNames().Match(resp.TLS.PeerCertificates[0])
}

// isLocal reports whether an address is this machine's.
func isLocal(address string) bool {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// forgetEndpoint deletes the endpoint of this controller's API server at its old address, which
// would stay in the service kubernetes for another 15 seconds.
func (m *Members) forgetEndpoint(ctx context.Context, was, is []string) {
	client, _, done, err := m.client()
	if err != nil {
		return
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, change.Timeout)
	defer cancel()
	for _, host := range hosts(was) {
		if _, err := netip.ParseAddr(host); err != nil || slices.Contains(hosts(is), host) {
			continue
		}
		if _, err := client.Delete(ctx, m.prefix+"/masterleases/"+host); err != nil {
			m.log.Debug("the old endpoint stays until its lease ends", "address", host, "err", err)
		}
	}
}

func hosts(urls []string) (all []string) {
	for _, text := range urls {
		if u, err := url.Parse(text); err == nil {
			all = append(all, u.Hostname())
		}
	}
	return all
}
