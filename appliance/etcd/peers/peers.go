// Package peers talks to the other members of etcd over their peer ports, beside etcd itself: it
// fetches the members before a first start, tells members of another CA or with another name, which
// etcd's log does not show, and gives up connections that take no more bytes.
package peers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/supervise"
)

// membersTimeout bounds one request to one peer.
const membersTimeout = 3 * time.Second

// fetchMembers fetches the list of members from the peer at url, as etcd itself does
// (etcdserver/cluster_util.go:GetClusterFromRemotePeers), but returns the reason of a
// failure.
func fetchMembers(ctx context.Context, tls *tls.Config, url string) ([]*membership.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, membersTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/members", nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Transport{TLSClientConfig: tls, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	var members []*membership.Member
	if err := json.Unmarshal(body, &members); err != nil || resp.StatusCode != http.StatusOK || len(members) == 0 {
		return nil, fmt.Errorf("it does not say who the members are (%s)", resp.Status)
	}
	return members, nil
}

// Learn fetches the current members from the cluster before the first start of a
// controller that has joined it. etcd requires exactly the current members, and members
// may have been added or removed since kthwd join wrote the list. It blocks until one
// answers or ctx ends.
func Learn(ctx context.Context, cfg *embed.Config, log *slog.Logger, report supervise.Reporter) error {
	if cfg.ClusterState != embed.ClusterStateFlagExisting || hasData(cfg) {
		return nil
	}
	known, err := types.NewURLsMap(cfg.InitialCluster)
	if err != nil {
		return fmt.Errorf("initial-cluster: %w", err)
	}
	tls, err := cfg.PeerTLSInfo.ClientConfig()
	if err != nil {
		return err
	}
	delete(known, cfg.Name)
	for last := ""; ctx.Err() == nil; supervise.Sleep(ctx, time.Second) {
		members, reasons := anyMembers(ctx, tls, known)
		if members != nil {
			return joinThese(cfg, members)
		}
		if last != reasons && ctx.Err() == nil {
			last = reasons
			log.Warn("no controller of the cluster answers", "err", reasons)
			report.Waiting("waiting for a controller of the cluster: " + reasons)
		}
	}
	return nil
}

// anyMembers fetches the members from the first peer that answers, or returns the reason
// of each failure.
func anyMembers(ctx context.Context, tls *tls.Config, known types.URLsMap) ([]*membership.Member, string) {
	var reasons []string
	for _, name := range slices.Sorted(maps.Keys(known)) {
		for _, url := range known[name].StringSlice() {
			members, err := fetchMembers(ctx, tls, url)
			if err == nil {
				return members, ""
			}
			reasons = append(reasons, name+": "+peerError(err))
		}
	}
	return nil, strings.Join(reasons, "; ")
}

// joinThese sets etcd's initial cluster. It fails if this member is not in the list.
func joinThese(cfg *embed.Config, members []*membership.Member) error {
	own := cfg.AdvertisePeerUrls[0].String()
	var all []string
	found := false
	for _, m := range members {
		name := m.Name
		switch {
		case slices.Contains(m.PeerURLs, own):
			name, found = cfg.Name, true
		case name == "":
			name = m.ID.String() // it has not started
		}
		for _, url := range m.PeerURLs {
			all = append(all, name+"="+url)
		}
	}
	if !found {
		return advice.With(fmt.Errorf("this controller, %s at %s, is not among the members of the cluster: it was removed, or given up because it did not arrive in time", cfg.Name, own),
			"kthwd member add NAME ADDRESS on another controller, then kthwd join with --replace-data here")
	}
	cfg.InitialCluster = strings.Join(all, ",")
	return nil
}

// hasData tells whether the member has a write-ahead log, which lists the members.
func hasData(cfg *embed.Config) bool {
	dir := cfg.WalDir
	if dir == "" {
		dir = filepath.Join(cfg.Dir, "member", "wal")
	}
	names, err := etcdfiles.Logs(dir)
	return err == nil && len(names) > 0
}

// peerError shortens the error of a request to a peer.
func peerError(err error) string {
	var op interface{ Timeout() bool }
	if errors.As(err, &op) && op.Timeout() {
		return "no answer"
	}
	return err.Error()
}

// Strangers returns the peers with a certificate of another CA, or with a name that is not accepted.
func Strangers(ctx context.Context, cfg *embed.Config, tls *tls.Config, server *embed.Etcd) (found []string) {
	for _, m := range server.Server.Cluster().Members() {
		if m.ID == server.Server.MemberID() || len(m.PeerURLs) == 0 {
			continue
		}
		_, err := fetchMembers(ctx, tls, m.PeerURLs[0])
		if errors.As(err, new(x509.UnknownAuthorityError)) {
			found = append(found, fmt.Sprintf("%s at %s shows a certificate of another CA than %s", m.Name, view.PeerHost(m), cfg.PeerTLSInfo.TrustedCAFile))
		} else if err != nil {
			if why := strangeName(ctx, cfg, m.PeerURLs[0]); why != "" {
				found = append(found, fmt.Sprintf("%s at %s %s", m.Name, view.PeerHost(m), why))
			}
		}
	}
	slices.Sort(found)
	return found
}

// Try connects to a peer.
func Try(ctx context.Context, cfg *embed.Config, url string) error {
	tls, err := cfg.PeerTLSInfo.ClientConfig()
	if err == nil {
		_, err = fetchMembers(ctx, tls, url)
	}
	return err
}
