package status

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kthwd/appliance/status/history"
	"kthwd/lb"
	"kthwd/test/harness"
)

// A series is shown as lines with gaps and, for those who do not see them, in text.
func TestSparklines(t *testing.T) {
	gap := math.NaN()
	got := sparklines([]history.Line{
		{Series: history.Series{Name: "etcd fsync p99", Unit: history.Seconds}, Values: history.Values{0.001, 0.002, gap, 0.004, gap}},
		{Series: history.Series{Name: "memory", Unit: history.Bytes}, Values: history.Values{0, 0, 0}},
		{Series: history.Series{Name: "nothing", Unit: history.Bytes}, Values: history.Values{gap}},
	})
	want := []sparkline{
		{Name: "etcd fsync p99", Now: "none now", Least: "1ms", Most: "4ms", Pieces: []string{"0.0,23.5 30.0,16.0", "90.0,1.0 90.0,1.0"}},
		{Name: "memory", Now: "0 B", Least: "0 B", Most: "0 B", Pieces: []string{"0.0,31.0 60.0,31.0 120.0,31.0"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// The rate is that of the connections since the last sample.
func TestBalancerHistory(t *testing.T) {
	var now *lb.Status
	s := balancerHistory(func() *lb.Status { return now })
	if got := s.Read(0); got != nil {
		t.Errorf("without a load balancer: got %v", got)
	}
	now = &lb.Status{Connections: 7, Listen: []lb.ListenerStatus{{Accepted: 100}, {Accepted: 20}}}
	if got := s.Read(30 * time.Second); got[0] != 7 || !math.IsNaN(got[1]) {
		t.Errorf("at first: got %v", got)
	}
	now = &lb.Status{Connections: 8, Listen: []lb.ListenerStatus{{Accepted: 130}, {Accepted: 50}}}
	if got := s.Read(30 * time.Second); got[0] != 8 || got[1] != 2 {
		t.Errorf("got %v, want 8 and 2 a second", got)
	}
}

// The history has a path of its own, and the report does not grow by it.
func TestHistoryPath(t *testing.T) {
	addr := free(t)
	source := history.Source{Series: []history.Series{{Name: "etcd fsync p99", Unit: history.Seconds}}, Read: func(time.Duration) []float64 { return []float64{0.25} }}
	start(t, ServerConfig{Address: addr, Report: func() Report { return reports()["lb"] }, History: []history.Source{source}})
	page := ""
	harness.WaitFor(t, "the first sample on the page", time.Minute, func() error {
		if _, page = get(t, "http://"+addr+"/"); !strings.Contains(page, "etcd fsync p99") {
			return errors.New("not there yet")
		}
		return nil
	})
	for _, want := range []string{"etcd fsync p99", "<strong>250ms</strong>", "least 250ms, most 250ms", "resident memory", "lb connections", "<polyline points="} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	code, body := get(t, "http://"+addr+"/status/history")
	if code != http.StatusOK || !json.Valid([]byte(body)) || !strings.Contains(body, `"name":"etcd fsync p99"`) || !strings.Contains(body, "0.25]") {
		t.Errorf("/status/history: got %d %s", code, body)
	}
	if _, report := get(t, "http://"+addr+"/status.json"); strings.Contains(report, "resident memory") {
		t.Error("/status.json has the history")
	}
}
