// Package drift compares the configuration with what the cluster in etcd was made with.
// Upstream reads some settings only when a cluster is made, and ignores another value
// without a word.
//
// Check comes after the first quorum and before the API server starts. It refuses what
// would look like an empty cluster; another difference is a finding, as long as the process
// runs. The cluster itself has its ranges; of its names and its issuer Check keeps a record
// in etcd.
package drift

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"kthwd/appliance/advice"
	"kthwd/appliance/status"
)

// Drift is the comparison. Its fields are set before Check.
type Drift struct {
	Prefix       string // of kube-apiserver's keys in etcd
	ServiceRange string // --service-cluster-ip-range of kube-apiserver
	PodRange     string // --cluster-cidr; empty for none
	Allocates    bool   // whether kube-controller-manager gives nodes their ranges (--allocate-node-cidrs)
	ClusterName  string // --cluster-name
	ClusterToken string // --initial-cluster-token of etcd

	// Issuers are the issuers whose service account tokens are accepted. The first one's
	// are issued.
	Issuers []string

	found atomic.Pointer[[]status.Finding]
}

// Findings returns what Check has found. It never blocks.
func (d *Drift) Findings() []status.Finding {
	if found := d.found.Load(); found != nil {
		return *found
	}
	return nil
}

// Check refuses a prefix below which there is nothing, although there is a cluster below
// another one, and compares the other settings. If etcd does not answer, or cannot be
// understood, nothing is refused.
func (d *Drift) Check(ctx context.Context, server *embed.Etcd) error {
	client := v3client.New(server.Server)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	prefix := strings.TrimRight("/"+strings.Trim(d.Prefix, "/"), "/") + "/"
	here, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	if err != nil {
		return nil
	}
	if len(here.Kvs) == 0 {
		if err := d.refuseEmpty(ctx, client, prefix, here.Header.Revision); err != nil {
			return err
		}
	}
	now := time.Now()
	found := slices.Concat(d.services(ctx, client, prefix, now), d.pods(ctx, client, prefix, now), d.recorded(ctx, client, now))
	d.found.Store(&found)
	return nil
}

// services compares the range of services.
func (d *Drift) services(ctx context.Context, client *clientv3.Client, prefix string, now time.Time) []status.Finding {
	ranges := serviceRanges(ctx, client, prefix)
	if len(ranges) == 0 || sameRanges(ranges, strings.Split(d.ServiceRange, ",")) {
		return nil
	}
	return []status.Finding{{
		Health: status.Degraded, Kind: "service_range", Since: now,
		Text: fmt.Sprintf("the services of this cluster are in %s, so --service-cluster-ip-range=%s has no effect", strings.Join(ranges, ","), d.ServiceRange),
		Do:   "set --service-cluster-ip-range=" + strings.Join(ranges, ",") + ", and add a range with a ServiceCIDR object",
	}}
}

// kthwdKeys are kthwd's own; no API server's are below them.
const kthwdKeys = "/kthwd/"

// refuseEmpty looks elsewhere in etcd, at the revision at which nothing was below prefix: another
// controller of a new cluster may write its first objects meanwhile.
func (d *Drift) refuseEmpty(ctx context.Context, client *clientv3.Client, prefix string, revision int64) error {
	for _, r := range [][2]string{{"/", kthwdKeys}, {clientv3.GetPrefixRangeEnd(kthwdKeys), "0"}} {
		other, err := client.Get(ctx, r[0], clientv3.WithRange(r[1]), clientv3.WithLimit(1), clientv3.WithKeysOnly(), clientv3.WithRev(revision))
		if err != nil || len(other.Kvs) == 0 {
			continue
		}
		return advice.With(fmt.Errorf("etcd has nothing below %s, but a cluster elsewhere, such as %s: with --etcd-prefix=%s this would be an empty cluster", prefix, other.Kvs[0].Key, d.Prefix),
			"set --kube-apiserver-arg=etcd-prefix to the one before, or leave it out for /registry; a new cluster needs a data directory of its own")
	}
	return nil
}

// serviceRanges returns the ranges that the cluster was made with.
func serviceRanges(ctx context.Context, client *clientv3.Client, prefix string) []string {
	if cidr, ok := decode[*networkingv1.ServiceCIDR](ctx, client, prefix+"servicecidrs/kubernetes"); ok {
		return cidr.Spec.CIDRs
	}
	if service, ok := decode[*corev1.Service](ctx, client, prefix+"services/specs/default/kubernetes"); ok {
		return service.Spec.ClusterIPs
	}
	return nil
}

// decode reads an object; ok is false if it is not there or, for example, encrypted.
func decode[T any](ctx context.Context, client *clientv3.Client, key string) (object T, ok bool) {
	answer, err := client.Get(ctx, key)
	if err != nil || len(answer.Kvs) == 0 {
		return object, false
	}
	return parse[T](answer.Kvs[0].Value)
}

// parse reads the value of a key; ok is false if it is another object, or encrypted.
func parse[T any](value []byte) (object T, ok bool) {
	decoded, _, err := scheme.Codecs.UniversalDeserializer().Decode(value, nil, nil)
	if err != nil {
		return object, false
	}
	object, ok = decoded.(T)
	return object, ok
}

// sameRanges compares the ranges, or the addresses in them, with those of the configuration.
func sameRanges(cluster, configured []string) bool {
	return !slices.ContainsFunc(cluster, func(c string) bool {
		return !slices.ContainsFunc(configured, func(text string) bool { return within(c, text) })
	})
}

func within(cluster, configured string) bool {
	want, err := netip.ParsePrefix(configured)
	if err != nil {
		return false
	}
	if address, err := netip.ParseAddr(cluster); err == nil {
		return want.Contains(address)
	}
	is, err := netip.ParsePrefix(cluster)
	return err == nil && is.Masked() == want.Masked()
}
