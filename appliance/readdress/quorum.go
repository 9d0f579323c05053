package readdress

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
	"kthwd/appliance/text"
)

const (
	askTimeout    = 5 * time.Second  // to find out whether a controller is up
	changeTimeout = 15 * time.Second // for the others to agree
)

// changePeerURL changes the peer URL through the others, if they have a quorum without this
// controller: it is down now, and the change must not depend on its return.
func (c *Change) changePeerURL(ctx context.Context, config *tls.Config) error {
	up, down, reasons := c.ask(ctx, config)
	voters := slices.DeleteFunc(append(slices.Clone(c.others), c.self), func(m etcdfiles.StoredMember) bool { return m.IsLearner })
	if needed := len(voters)/2 + 1; len(up) < needed {
		return advice.With(fmt.Errorf("%d of %d controllers are up without this one, and %d must be to change its address; down: %s", len(up), len(voters), needed, strings.Join(reasons, "; ")),
			fmt.Sprintf("bring one of these back first: %s; if their addresses have changed, too, run this on so many with --at-start that there is a quorum, one after the other, each started before the next; then on the rest without it", strings.Join(down, ", ")))
	}
	client, err := c.client(config, up)
	if err != nil {
		return err
	}
	defer client.Close()
	return c.update(ctx, client)
}

// learn takes the members from the others, as they are now: what is stored here is as old as the
// last quorum of this controller, and since then others may have moved, joined or left. A list
// on which a quorum agrees comes before what one of them has stored, and of those the one of the
// latest term. If nobody answers, what is stored here remains.
func (c *Change) learn(ctx context.Context, config *tls.Config) {
	lists := make([]answer, len(c.others))
	var all sync.WaitGroup
	for i, m := range c.others {
		all.Go(func() { lists[i] = c.listOf(ctx, config, m.ClientURLs) })
	}
	all.Wait()
	slices.SortStableFunc(lists, answer.compare)
	if len(lists) == 0 || lists[0].list == nil {
		return
	}
	var others []etcdfiles.StoredMember
	for _, e := range lists[0].list.Members {
		m := etcdfiles.StoredMember{ID: strconv.FormatUint(e.ID, 16), Name: e.Name, PeerURLs: e.PeerURLs, ClientURLs: e.ClientURLs, IsLearner: e.IsLearner}
		if m.ID == c.self.ID {
			c.self.IsLearner = m.IsLearner
		} else {
			others = append(others, m)
		}
	}
	c.others, c.learned = others, true
}

// answer is a list of the members; nil if none came.
type answer struct {
	list   *clientv3.MemberListResponse
	agreed bool // by a quorum
}

// compare puts the better one first.
func (a answer) compare(b answer) int {
	term := func(a answer) uint64 {
		if a.list == nil {
			return 0
		}
		return a.list.Header.GetRaftTerm()
	}
	switch {
	case a.agreed != b.agreed:
		return map[bool]int{true: -1, false: 1}[a.agreed]
	case (a.list == nil) != (b.list == nil):
		return map[bool]int{true: 1, false: -1}[a.list == nil]
	}
	return cmp.Compare(term(b), term(a))
}

// listOf asks a controller for the members.
func (c *Change) listOf(ctx context.Context, config *tls.Config, endpoints []string) answer {
	client, err := c.client(config, endpoints)
	if err != nil {
		return answer{} // it has no URL
	}
	defer client.Close()
	ask := func(options ...clientv3.OpOption) (*clientv3.MemberListResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		return client.MemberList(ctx, options...)
	}
	stored, err := ask(clientv3.WithSerializable())
	if err != nil {
		return answer{}
	}
	if list, err := ask(); err == nil {
		return answer{list, true}
	}
	return answer{stored, false}
}

// update changes the peer URL, and refuses one that another member has by now.
func (c *Change) update(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	id, err := strconv.ParseUint(c.self.ID, 16, 64)
	if err != nil {
		return err
	}
	list, err := client.MemberList(ctx)
	if err != nil {
		return fmt.Errorf("the others do not agree on their members: %w", err)
	}
	known := false
	for _, m := range list.Members {
		switch {
		case m.ID == id && slices.Equal(m.PeerURLs, []string{c.peerURL()}):
			c.o.Say("kept     the peer URL " + c.peerURL() + ", which the others know already")
			return nil
		case m.ID == id:
			known = true
		case slices.Contains(m.PeerURLs, c.peerURL()):
			return fmt.Errorf("%s is the peer URL of %s", c.peerURL(), text.Line(m.Name))
		}
	}
	if !known {
		return advice.With(fmt.Errorf("%s was removed from the cluster", c.self.Name), "kthwd member add NAME ADDRESS on another controller, then kthwd join with --replace-data here")
	}
	if _, err := client.MemberUpdate(ctx, id, []string{c.peerURL()}); err != nil {
		return fmt.Errorf("change the peer URL: %w", err)
	}
	c.o.Say(fmt.Sprintf("changed  the peer URL of %s from %s to %s", c.self.Name, strings.Join(c.self.PeerURLs, ","), c.peerURL()))
	return nil
}

// clientTLS is how this controller speaks with etcd on the others.
func (c *Change) clientTLS(pair tls.Certificate) (*tls.Config, error) {
	pool, err := pki.Pool(pki.StageOf(c.layout).Files(c.layout).CA)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

func (c *Change) client(config *tls.Config, endpoints []string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, TLS: config, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{grpc.WithNoProxy()}})
}

// ask finds out which other voters are up. up has their URLs, down the names of the others and
// reasons why.
func (c *Change) ask(ctx context.Context, config *tls.Config) (up, down, reasons []string) {
	var mu sync.Mutex
	var wait sync.WaitGroup
	for _, m := range c.others {
		if m.IsLearner {
			continue
		}
		wait.Go(func() {
			endpoint, err := c.askOne(ctx, config, m)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				up = append(up, endpoint)
				return
			}
			down, reasons = append(down, m.Name), append(reasons, fmt.Sprintf("%s (%v)", m.Name, err))
		})
	}
	wait.Wait()
	slices.Sort(down)
	slices.Sort(reasons)
	return up, down, reasons
}

func (c *Change) askOne(ctx context.Context, config *tls.Config, m etcdfiles.StoredMember) (endpoint string, err error) {
	err = errors.New("it has never started")
	for _, endpoint := range m.ClientURLs {
		var client *clientv3.Client
		if client, err = c.client(config, []string{endpoint}); err != nil {
			continue
		}
		err = status(ctx, client, endpoint)
		client.Close()
		if err == nil {
			return endpoint, nil
		}
	}
	return "", err
}

func status(ctx context.Context, client *clientv3.Client, endpoint string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, err := client.Status(ctx, endpoint)
	if ctx.Err() != nil {
		return fmt.Errorf("no answer within %v", askTimeout)
	}
	return err
}
