package drift

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"

	"kthwd/appliance/status"
)

// page is the number of nodes that are read at once: about 2 MB.
const page = 200

// strays are the nodes whose range of pods is outside the configured ones.
type strays struct {
	nodes, outside int
	name, podRange string // of the first one outside
}

// pods compares the range of pods with those that the nodes have.
func (d *Drift) pods(ctx context.Context, client *clientv3.Client, prefix string, now time.Time) []status.Finding {
	configured := prefixes(strings.Split(d.PodRange, ","))
	if len(configured) == 0 {
		return nil
	}
	s := strays{}
	start := prefix + "minions/"
	for from, end := start, clientv3.GetPrefixRangeEnd(start); ; {
		answer, err := client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page))
		if err != nil {
			return nil
		}
		for _, kv := range answer.Kvs {
			if node, ok := parse[*corev1.Node](kv.Value); ok {
				s.add(node, configured)
			}
			from = string(kv.Key) + "\x00"
		}
		if !answer.More {
			break
		}
	}
	if s.outside == 0 {
		return nil
	}
	finding := status.Finding{
		Health: status.Healthy, Kind: "pod_range", Since: now,
		Text: fmt.Sprintf("nodes whose pods are outside --cluster-cidr=%s: %d of %d, such as %s with %s", d.PodRange, s.outside, s.nodes, s.name, s.podRange),
		Do:   "set --cluster-cidr to the range in which the nodes' ranges are, or delete these nodes and register them anew",
	}
	if d.Allocates {
		finding.Health = status.Degraded
		finding.Text += "; kube-controller-manager cannot give nodes their ranges"
	}
	return []status.Finding{finding}
}

func (s *strays) add(node *corev1.Node, configured []netip.Prefix) {
	s.nodes++
	for _, r := range prefixes(node.Spec.PodCIDRs) {
		if slices.ContainsFunc(configured, func(c netip.Prefix) bool { return c.Bits() <= r.Bits() && c.Contains(r.Addr()) }) {
			continue
		}
		if s.outside++; s.outside == 1 {
			s.name, s.podRange = node.Name, r.String()
		}
		return
	}
}

// prefixes leaves out what is no range.
func prefixes(texts []string) (all []netip.Prefix) {
	for _, text := range texts {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			all = append(all, p.Masked())
		}
	}
	return all
}
