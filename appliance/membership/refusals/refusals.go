// Package refusals counts and limits what the join port refuses: every request reads etcd through
// the quorum and writes a line to the log, so a source without a token must not have many of them.
package refusals

import (
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/member"
	"kthwd/appliance/status"
)

// Reasons for which the join port refuses a request.
const (
	ReasonUnknown = "unknown"      // no such token, or no more
	ReasonSecret  = "secret"       // a known token with another secret
	ReasonUsed    = "used"         // a second use
	ReasonExpired = "expired"      // after its time
	ReasonAddress = "address"      // from another machine than the one that it is for
	ReasonVersion = "version"      // of a kthwd that does not fit
	ReasonForm    = "form"         // no request of kthwd join
	ReasonDropped = "dropped"      // too many of one source were refused
	ReasonOther   = "other"        // anything else, such as a cluster without a quorum
	ReasonRetry   = "not_possible" // not now: the joiner tries again by itself
)

const (
	// KindReused is the kind of the finding about a join token that was used twice.
	KindReused = "join_token_reused"

	// ReusedFor is how long it lasts.
	ReusedFor = time.Hour
)

// Counter counts what the join port refuses, and remembers the last second use of a token:
// whoever was first has the cluster's keys.
type Counter struct {
	Total *prometheus.CounterVec // a collector, by the reason
	last  atomic.Pointer[status.Finding]
}

// NewCounter returns a counter that has counted nothing.
func NewCounter() *Counter {
	r := &Counter{Total: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kthwd_join_refused_total", Help: "Requests that the join port of this controller has refused, by the reason; used is a second use of a token.",
	}, []string{"reason"})}
	for _, reason := range []string{ReasonUnknown, ReasonSecret, ReasonUsed, ReasonExpired, ReasonAddress, ReasonVersion, ReasonForm, ReasonDropped, ReasonRetry, ReasonOther} {
		r.Total.WithLabelValues(reason)
	}
	return r
}

// Refused notes a refusal; f may be nil.
func (r *Counter) Refused(reason, from string, f *member.Refusal) {
	switch {
	case f != nil && f.Reason != "":
		reason = f.Reason
	case f != nil && f.Retry:
		reason = ReasonRetry
	}
	r.Total.WithLabelValues(reason).Inc()
	if reason == ReasonUsed {
		r.last.Store(&status.Finding{
			Health: status.Healthy, Kind: KindReused, Since: time.Now(),
			Text: fmt.Sprintf("a join token was used twice, the second time from %s: %s", Host(from), f.Text),
			Do:   "if nobody of yours used it twice, whoever was first or second is a stranger: kthwd member remove NAME, then replace the cluster's keys",
		})
	}
}

// Findings tells of a token that was used twice.
func (r *Counter) Findings(now time.Time) []status.Finding {
	if f := r.last.Load(); f != nil && now.Sub(f.Since) < ReusedFor {
		return []status.Finding{*f}
	}
	return nil
}

// Host returns the address without its port.
func Host(address string) string {
	h, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return h
}
