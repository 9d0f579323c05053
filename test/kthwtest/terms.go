package kthwtest

import "regexp"

var (
	endedTerm = regexp.MustCompile(`level=WARN component=(\S+) msg="term ended, beginning again" (err=.*) pause=`)

	// unanswered are the errors of a term whose lease was not renewed, or whose program did not
	// begin, because the API server or etcd had not answered in time.
	unanswered = regexp.MustCompile(`^err="lease lost"$|context deadline exceeded|Client\.Timeout exceeded|` +
		`request did not complete within requested timeout|etcdserver: request timed out("|$)|` +
		`does not hold the lease of the component that asks`)
)

// EndedTerms returns why terms of kube-controller-manager or kube-scheduler have ended
// by themselves, except those to which there was no answer in time: on a busy machine that
// ends a term whatever a test does.
func (c *Controller) EndedTerms(component string) []string {
	return endedTerms(c.Log.String(), component)
}

func endedTerms(log, component string) (all []string) {
	for _, line := range endedTerm.FindAllStringSubmatch(log, -1) {
		if line[1] == component && !unanswered.MatchString(line[2]) {
			all = append(all, line[2])
		}
	}
	return all
}
