package benchlb

import (
	"fmt"
	"slices"
	"testing"

	"kthwd/test/lbtest"
	"kthwd/test/report"
)

const (
	burstClients = 5000 // kubelets that were all cut off
	burstTurns   = 8    // of each balancer in a round
)

// bursts lets many clients connect at once. The balancers stand beside each other, each at an
// address of its own, and take turns burst by burst: what else the machine does changes within
// seconds, and a ratio of two bursts that follow each other has less of it than one of two
// medians. What an idle balancer costs beside is nothing.
func (b *bench) bursts(t *testing.T, round int) {
	t.Run(fmt.Sprintf("burst-%d", round+1), func(t *testing.T) {
		rigs := b.sideBySide(t, round)
		p50, p99, lost := map[string][]float64{}, map[string][]float64{}, map[string]int{}
		n := min(burstClients, (b.limit-600)/6)
		for turn := range burstTurns {
			for i := range rigs {
				r := rigs[(i+turn)%len(rigs)]
				overflows, drops := lbtest.ListenLosses(t, r.ns)
				m := r.run(t, order{Kind: "burst", Clients: n}, nil)
				overflowsNow, dropsNow := lbtest.ListenLosses(t, r.ns)
				p50[r.side.Name], p99[r.side.Name] = append(p50[r.side.Name], m.P50/1000), append(p99[r.side.Name], m.P99/1000)
				lost[r.side.Name] += max(overflowsNow-overflows, dropsNow-drops)
			}
		}
		for _, r := range rigs {
			b.results.add(metricBurstP50, r.side.Name, round, report.Median(p50[r.side.Name]))
			b.results.add(metricBurstP99, r.side.Name, round, report.Median(p99[r.side.Name]))
			b.results.add(metricBurstLost, r.side.Name, round, float64(lost[r.side.Name]))
			b.results.add(metricOthers, r.side.Name, round, r.others())
		}
		if ratios := ratiosOf(p99["kthwd"], p99["nginx"]); len(ratios) > 0 {
			b.results.add(metricBurstRatio, "kthwd", round, report.Median(ratios))
		}
	})
}

// sideBySide starts all balancers in one network, before the same backend.
func (b *bench) sideBySide(t *testing.T, round int) (rigs []*rig) {
	t.Helper()
	for i := range b.sides {
		s := b.sides[(i+round)%len(b.sides)]
		if i == 0 {
			rigs = append(rigs, b.newRig(t, s))
			continue
		}
		r := &rig{bench: b, side: s, ns: rigs[0].ns, backend: rigs[0].backend, listen: fmt.Sprintf("127.0.0.1:%d", 7443+i)}
		r.start(t)
		rigs = append(rigs, r)
	}
	for _, r := range rigs {
		for _, other := range rigs {
			if other != r {
				r.beside = append(r.beside, other.balancer.Tree()...)
			}
		}
	}
	return rigs
}

// ratiosOf returns the ratio of each turn; nil where one of the two was not measured.
func ratiosOf(ours, theirs []float64) (all []float64) {
	for i := range min(len(ours), len(theirs)) {
		if theirs[i] > 0 {
			all = append(all, ours[i]/theirs[i])
		}
	}
	return slices.Clip(all)
}
