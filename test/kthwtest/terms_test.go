package kthwtest

import (
	"slices"
	"testing"
)

func TestEndedTerms(t *testing.T) {
	const log = `time=t level=WARN component=kube-scheduler msg="term ended, beginning again" err="lease lost" pause=500ms
time=t level=WARN component=kube-scheduler msg="term ended, beginning again" err="lease lost: Put \"https://127.0.0.1:1/\": net/http: request canceled (Client.Timeout exceeded while awaiting headers)" pause=1s
time=t level=WARN component=kube-scheduler msg="term ended, beginning again" err="lease lost: Unauthorized" pause=1s
time=t level=WARN component=kube-controller-manager msg="term ended, beginning again" err="exit 1" pause=1s
time=t level=WARN component=kube-scheduler msg="lease lost, stopping" margin=5s
`
	if got, want := endedTerms(log, "kube-scheduler"), []string{`err="lease lost: Unauthorized"`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
