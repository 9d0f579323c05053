package drift

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/status"
)

// recordKey holds settings of which Kubernetes keeps nothing in the cluster.
const recordKey = "/kthwd/settings"

// shown is how long a change is told: most tokens of the issuer before have ended by then.
const shown = 24 * time.Hour

// setting is a recorded one: its value, and the one before, if it has changed.
type setting struct {
	Value  string    `json:"value"`
	Before string    `json:"before,omitempty"`
	Since  time.Time `json:"since,omitzero"` // when Value replaced Before
}

// The names of the recorded settings are those of their flags.
const (
	issuer       = "service-account-issuer"
	clusterName  = "cluster-name"
	clusterToken = "initial-cluster-token"
)

// recorded compares settings with the record of this cluster, and records changes. Several
// controllers that differ from each other change the record in turn.
func (d *Drift) recorded(ctx context.Context, client *clientv3.Client, now time.Time) []status.Finding {
	answer, err := client.Get(ctx, recordKey)
	if err != nil {
		return nil
	}
	known, revision := map[string]setting{}, int64(0)
	if len(answer.Kvs) > 0 {
		revision = answer.Kvs[0].ModRevision
		if err := json.Unmarshal(answer.Kvs[0].Value, &known); err != nil {
			return nil
		}
	}
	next := d.changed(known, now)
	if value, err := json.Marshal(next); err == nil && !maps.Equal(known, next) {
		// If another controller has written meanwhile, or etcd does not answer, the next start records it.
		_, _ = client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(recordKey), "=", revision)).Then(clientv3.OpPut(recordKey, string(value))).Commit()
	}
	return d.tell(next, now)
}

// changed returns the record with the present values.
func (d *Drift) changed(known map[string]setting, now time.Time) map[string]setting {
	next := maps.Clone(known)
	if next == nil {
		next = map[string]setting{}
	}
	present := map[string]string{clusterName: d.ClusterName, clusterToken: d.ClusterToken}
	if len(d.Issuers) > 0 {
		present[issuer] = d.Issuers[0]
	}
	for name, value := range present {
		switch s, ok := known[name]; {
		case value == "" || ok && s.Value == value:
		case !ok || s.Before == value: // new, or taken back
			next[name] = setting{Value: value}
		default:
			next[name] = setting{Value: value, Before: s.Value, Since: now.UTC().Truncate(time.Second)}
		}
	}
	return next
}

// tell words the changes of the last day.
func (d *Drift) tell(all map[string]setting, now time.Time) (found []status.Finding) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s := all[name]
		if s.Before == "" || now.Sub(s.Since) > shown {
			continue
		}
		if name != issuer {
			found = append(found, status.Finding{
				Health: status.Healthy, Kind: "cluster_name", Since: s.Since,
				Text: fmt.Sprintf("--%s is %s since %s, and was %s: nothing that the cluster has gets the new name", name, s.Value, clock(s.Since), s.Before),
				Do:   fmt.Sprintf("set --%s=%s again, unless the change is meant", name, s.Before),
			})
			continue
		}
		if slices.Contains(d.Issuers, s.Before) {
			continue
		}
		const flag = "--kube-apiserver-arg=service-account-issuer="
		found = append(found, status.Finding{
			Health: status.Degraded, Kind: "token_issuer", Since: s.Since,
			Text: fmt.Sprintf("tokens from before %s are refused: --service-account-issuer is %s since then, and was %s", clock(s.Since), s.Value, s.Before),
			Do:   "accept both: " + strings.Join([]string{flag + s.Value, flag + s.Before}, " "),
		})
	}
	return found
}

// clock formats a time for people.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
