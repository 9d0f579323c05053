package membership

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"kthwd/appliance/config"
	"kthwd/appliance/etcd/peers"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/member"
	"kthwd/appliance/membership/change"
	"kthwd/appliance/membership/joins"
	"kthwd/appliance/pki"
)

// admit handles the joiner's second request: it makes the joiner a learner if the joiner
// answers on its peer port. It continues when the joiner hangs up, because a change of the
// membership cannot be revoked.
func (m *Members) admit(ctx context.Context, in member.Request) (member.Admitted, error) {
	var a member.Admitted
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), change.Timeout)
	defer cancel()
	client, server, done, err := m.client()
	if err != nil {
		return a, err
	}
	defer done()
	j, err := m.joinOf(ctx, client, in)
	if err != nil {
		return a, err
	}
	peer := "https://" + net.JoinHostPort(j.Address, strconv.Itoa(in.PeerPort))
	if j.Member(server.Server.Cluster().Members()) == nil {
		if err := m.addLearner(ctx, client, server, &j, in, peer); err != nil {
			return a, err
		}
	}
	// The learner has the token's whole lifetime again to arrive.
	if _, err := client.KeepAliveOnce(ctx, clientv3.LeaseID(j.Lease)); err != nil {
		m.log.Warn("the time to arrive is not prolonged", "name", j.Name, "err", err)
	}
	a.Within = j.TTL
	for _, e := range server.Server.Cluster().Members() {
		name := e.Name
		if name == "" {
			name = j.Name
		}
		a.Members = append(a.Members, config.Member{Name: name, Address: view.PeerHost(e)})
	}
	return a, nil
}

// addLearner spends the token, then changes the membership. A crash between the two
// leaves a record that expires. If the outcome of the change is unknown, the token stays
// spent, and the joiner that spent it may try again.
func (m *Members) addLearner(ctx context.Context, client *clientv3.Client, server *embed.Etcd, j *joins.Join, in member.Request, peer string) error {
	for _, e := range server.Server.Cluster().Members() {
		if e.IsLearner && !slices.Contains(e.PeerURLs, peer) {
			return &member.Refusal{Text: "another controller is catching up, at " + view.PeerHost(e), Advice: "wait until kthwd member list shows that it votes", Retry: true}
		}
	}
	urls, err := types.NewURLs([]string{peer})
	if err != nil {
		return err
	}
	if err := m.dialBack(ctx, *j, peer, joins.JoinerHash(in.Joiner)); err != nil {
		return err
	}
	if err := m.othersReach(ctx, client, server, *j, in.PeerPort, in.Joiner); err != nil {
		return err
	}
	key, err := m.sealKey()
	if err != nil {
		return err
	}
	before := *j
	j.Joiner, j.PeerURL = in.Joiner, urls.StringSlice()[0]
	if done, err := j.Update(ctx, client, key); err != nil || !done {
		return errors.Join(err, &member.Refusal{Text: "two machines use this token at the same time", Advice: newToken, Retry: true})
	}
	now := time.Now()
	err = change.Retry(ctx, func() error {
		if j.Member(server.Server.Cluster().Members()) != nil {
			return nil // an earlier attempt succeeded without an answer
		}
		_, err := server.Server.AddMember(ctx, *membership.NewMemberAsLearner("", urls, "", &now))
		if errors.Is(err, etcderrors.ErrUnhealthy) {
			err = change.ThroughLeader(ctx, m.layout, server, m.log, func(c *clientv3.Client) error {
				_, err := c.MemberAddAsLearner(ctx, urls.StringSlice())
				return err
			})
		}
		return err
	})
	if err != nil && !change.OutcomeUnknown(err) {
		before.After(*j)
		if _, again := before.Update(context.WithoutCancel(ctx), client, key); again != nil {
			m.log.Warn("the token stays spent", "name", j.Name, "err", again)
		}
	}
	if err != nil {
		return err
	}
	m.log.Info("learner added", "name", j.Name, "address", j.Address)
	return nil
}

// dialBack verifies that the joiner answers on its peer port, with a certificate of the
// cluster's CA, before the membership depends on it. joiner is the hash of the joiner's
// name.
func (m *Members) dialBack(ctx context.Context, j joins.Join, peer string, joiner []byte) error {
	tls, err := pki.ClientTLS(m.layout)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: tls, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, peer+member.DialPath+j.ID, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if names := m.etcd.PeerNames(); resp != nil && !names.Match(resp.TLS.PeerCertificates[0]) {
		resp.Body.Close()
		return &member.Refusal{Text: fmt.Sprintf("the certificate of the new controller's etcd is for %s, and etcd here accepts %s: the cluster would shut it out", peers.SubjectOf(resp.TLS.PeerCertificates[0]), names),
			Advice: "move etcd.pem (or kubernetes.pem, if there is none) and its key away there and join again, and the cluster issues them; the token remains valid"}
	}
	if text, do, ok := member.Outdated(err, "kubernetes.pem of the new controller", time.Now()); ok {
		return &member.Refusal{Text: text, Advice: do + "; the token remains valid"}
	}
	if err != nil {
		return &member.Refusal{Text: fmt.Sprintf("%s cannot reach the new controller's peer port: %v", m.cfg.Name, err),
			Advice: "open that port there for the other controllers; the token remains valid"}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil || !bytes.Equal(joins.JoinerHash(string(body)), joiner) {
		return &member.Refusal{Text: fmt.Sprintf("the program that answers at %s is not the controller that wants to join", peer),
			Advice: "find the program that listens there; the token remains valid"}
	}
	return nil
}
