package membership

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/member"
	"kthwd/appliance/status"
)

// Reasons for which the join port refuses a request.
const (
	reasonUnknown = "unknown"      // no such token, or no more
	reasonSecret  = "secret"       // a known token with another secret
	reasonUsed    = "used"         // a second use
	reasonExpired = "expired"      // after its time
	reasonAddress = "address"      // from another machine than the one that it is for
	reasonVersion = "version"      // of a kthwd that does not fit
	reasonForm    = "form"         // no request of kthwd join
	reasonDropped = "dropped"      // too many of one source were refused
	reasonOther   = "other"        // anything else, such as a cluster without a quorum
	reasonRetry   = "not_possible" // not now: the joiner tries again by itself
)

const (
	// KindReused is the kind of the finding about a join token that was used twice.
	KindReused = "join_token_reused"

	reusedFor = time.Hour // a finding about it
)

// refusedJoins counts what the join port refuses, and remembers the last second use of a token:
// whoever was first has the cluster's keys.
type refusedJoins struct {
	total *prometheus.CounterVec
	last  atomic.Pointer[status.Finding]
}

func newRefusedJoins() *refusedJoins {
	r := &refusedJoins{total: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kthwd_join_refused_total", Help: "Requests that the join port of this controller has refused, by the reason; used is a second use of a token.",
	}, []string{"reason"})}
	for _, reason := range []string{reasonUnknown, reasonSecret, reasonUsed, reasonExpired, reasonAddress, reasonVersion, reasonForm, reasonDropped, reasonRetry, reasonOther} {
		r.total.WithLabelValues(reason)
	}
	return r
}

// refused notes a refusal; f may be nil.
func (r *refusedJoins) refused(reason, from string, f *member.Refusal) {
	switch {
	case f != nil && f.Reason != "":
		reason = f.Reason
	case f != nil && f.Retry:
		reason = reasonRetry
	}
	r.total.WithLabelValues(reason).Inc()
	if reason == reasonUsed {
		r.last.Store(&status.Finding{
			Health: status.Healthy, Kind: KindReused, Since: time.Now(),
			Text: fmt.Sprintf("a join token was used twice, the second time from %s: %s", host(from), f.Text),
			Do:   "if nobody of yours used it twice, whoever was first or second is a stranger: kthwd member remove NAME, then replace the cluster's keys",
		})
	}
}

func (r *refusedJoins) finding(now time.Time) []status.Finding {
	if f := r.last.Load(); f != nil && now.Sub(f.Since) < reusedFor {
		return []status.Finding{*f}
	}
	return nil
}

// Describe implements prometheus.Collector.
func (m *Members) Describe(ch chan<- *prometheus.Desc) { m.refused.total.Describe(ch) }

// Collect implements prometheus.Collector.
func (m *Members) Collect(ch chan<- prometheus.Metric) { m.refused.total.Collect(ch) }
