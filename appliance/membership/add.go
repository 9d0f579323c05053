package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/member"
	"kthwd/appliance/membership/change"
	"kthwd/appliance/membership/joins"
	"kthwd/appliance/pki"
)

// maxTTL bounds the lifetime of a token, because a token gives access to every key.
const maxTTL = 24 * time.Hour

// addRequest serves kthwd member add.
func (m *Members) addRequest(r *http.Request) (any, error) {
	var in member.AddRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&in); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), change.Timeout)
	defer cancel()
	return m.add(ctx, in)
}

// add makes a token for a further controller. The membership does not change.
func (m *Members) add(ctx context.Context, in member.AddRequest) (member.Added, error) {
	client, _, done, err := m.client()
	if err != nil {
		return member.Added{}, err
	}
	defer done()
	l, err := m.list(ctx)
	if err != nil {
		return member.Added{}, err
	}
	if err := m.mayAdd(l, in); err != nil {
		return member.Added{}, err
	}
	key, err := m.sealKey()
	if err != nil {
		return member.Added{}, err
	}
	pin, _, err := pki.Pin(m.layout)
	if err != nil {
		return member.Added{}, err
	}
	token, err := member.NewToken(pin, m.joinAddresses(l))
	if err != nil {
		return member.Added{}, err
	}
	if err := m.endpoint.open(); err != nil {
		return member.Added{}, err
	}
	pending, _, err := m.joins(ctx, client)
	if err != nil {
		return member.Added{}, change.Explain(err)
	}
	j := joins.Join{ID: token.ID, Name: in.Name, Address: in.Address, From: in.From, Secret: token.Hash(), CAKey: in.CAKey, TTL: in.TTL}
	if err := j.Record(ctx, client, key, slices.DeleteFunc(pending, func(p joins.Join) bool { return p.Name != in.Name })); err != nil {
		return member.Added{}, change.Explain(err)
	}
	m.log.Info("token made for a further controller", "name", in.Name, "address", in.Address, "ttl", in.TTL)
	return member.Added{Token: token.String(), Warnings: m.addWarnings(l, in)}, nil
}

// mayAdd returns the reason to refuse the request, or nil.
func (m *Members) mayAdd(l member.List, in member.AddRequest) error {
	if _, err := config.ParseMember(in.Name, in.Address); err != nil {
		return err
	}
	if in.TTL < time.Second || in.TTL > maxTTL {
		return fmt.Errorf("a token cannot be good for %v: want %v to %v", in.TTL, time.Second, maxTTL)
	}
	if _, err := netip.ParseAddr(in.From); in.From != "" && err != nil {
		return fmt.Errorf("%q is no address that a controller could come from: want an IP address", in.From)
	}
	new, own := netip.MustParseAddr(in.Address), netip.MustParseAddr(m.cfg.AdvertiseAddress)
	switch {
	case own.IsLoopback() && !new.IsLoopback():
		return advice.With(fmt.Errorf("this controller's own address %s is loopback, which no other machine reaches", own),
			"a controller that others join needs --advertise-address with an address of its network from its first start on")
	case new.IsLoopback() && !own.IsLoopback():
		return advice.With(fmt.Errorf("%s is loopback, which this controller cannot reach on another machine", new), "give the address of the new machine")
	}
	if stage := pki.StageOf(m.layout); stage == pki.StageTrust || stage == pki.StageUse {
		return advice.With(errors.New("etcd is moving to a CA of its own, and a controller that joins now could be shut out"),
			"finish that first: kthwd pki split-etcd-ca --plan says what comes next")
	}
	if in.CAKey && !datadir.Exists(m.layout.CAKey()) {
		return fmt.Errorf("this controller has no key of the CA to give: %s is missing", m.layout.CAKey())
	}
	return l.MayAdd(in.Name, in.Address)
}

// joinAddresses returns the addresses that the joiner tries. This controller's is the first,
// because its port has just been opened.
func (m *Members) joinAddresses(l member.List) (all []string) {
	for _, v := range l.Voters() {
		address := net.JoinHostPort(v.Address, strconv.Itoa(m.cfg.JoinPort))
		if v.Self {
			all = slices.Insert(all, 0, address)
		} else {
			all = append(all, address)
		}
	}
	return slices.Compact(all)
}

// addWarnings returns the consequences of the request that the user should know.
func (m *Members) addWarnings(l member.List, in member.AddRequest) (lines []string) {
	coming := len(l.Voters()) + 1
	for _, o := range l.Members {
		if o.Role != member.Voter && o.Name != in.Name {
			coming++
		}
	}
	for _, w := range config.EvenWarning(coming) {
		lines = append(lines, "with "+in.Name+", "+w)
	}
	var lacks []string
	for _, key := range []string{m.layout.CAKey(), m.layout.EtcdCAKey()} {
		needed := key == m.layout.CAKey() || pki.StageOf(m.layout) != pki.StageShared
		if needed && !datadir.Exists(key) {
			lacks = append(lacks, filepath.Base(key))
		}
	}
	switch {
	case len(lacks) > 0:
		lines = append(lines, fmt.Sprintf("this controller has no %s: run this on one that has it, or give the new data directory its certificates before the join; kthwd pki controller %s %s makes them where the keys of the CAs are", strings.Join(lacks, " and no "), in.Name, in.Address))
	case !in.CAKey:
		lines = append(lines, fmt.Sprintf("%s does not get ca-key.pem, so kube-controller-manager there signs no certificates; --with-ca-key gives it", in.Name))
	}
	return lines
}
