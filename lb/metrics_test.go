package lb

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

// series are all series after a client was served and a backend checked.
var series = []string{
	"accept_errors_total{listener,reason}",
	"access_log_dropped_total{}",
	"backend_certificate_expiry_timestamp_seconds{backend}",
	"backend_connect_duration_seconds{backend}",
	"backend_connect_failures_total{backend,reason}",
	"backend_connect_retries_total{backend}",
	"backend_connections_active{backend}",
	"backend_connections_closed_total{backend,reason}",
	"backend_connections_total{backend}",
	"backend_hedged_connects_total{backend,result}",
	"backend_last_transition_timestamp_seconds{backend}",
	"backend_state_transitions_total{backend,to}",
	"backend_state{backend,state}",
	"backend_up{backend}",
	"backends{state}",
	"config_hash{}",
	"config_last_reload_success_timestamp_seconds{}",
	"config_reloads_total{result}",
	"connection_duration_seconds{listener}",
	"connections_accepted_total{listener}",
	"connections_active{listener}",
	"connections_held{}",
	"connections_limit{}",
	"connections_rejected_total{listener,reason}",
	"fail_open{}",
	"handover_connections_total{result}",
	"limit_hits_total{limit}",
	"handover_duration_seconds{}",
	"health_check_duration_seconds{backend,phase}",
	"health_checks_total{backend,result}",
	"loop_busy_seconds_total{loop}",
	"loops_in_use{}",
	"received_bytes_total{backend,listener}",
	"sent_bytes_total{backend,listener}",
}

func (r *rig) gather() map[string]*dto.MetricFamily {
	r.t.Helper()
	reg := prometheus.NewPedanticRegistry()
	must(r.t, reg.Register(r.Collector()))
	families, err := reg.Gather()
	must(r.t, err)
	problems, err := testutil.GatherAndLint(reg)
	must(r.t, err)
	for _, p := range problems {
		r.t.Errorf("promlint: %s: %s", p.Metric, p.Text)
	}
	all := map[string]*dto.MetricFamily{}
	for _, f := range families {
		all[strings.TrimPrefix(f.GetName(), "kthwd_lb_")] = f
	}
	return all
}

// value returns the value of the series with a label value; -1 when there is none.
func (r *rig) value(name, label string) float64 {
	for _, m := range r.gather()[name].GetMetric() {
		if label == "" || slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetValue() == label }) {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return -1
}

func TestMetrics(t *testing.T) {
	a, b := newAPIServer(t), newAPIServer(t)
	cfg := checkedConfig(a)
	cfg.DrainTimeout = time.Hour
	r := run(t, cfg, Options{})
	r.awaitTier(a, tierReady)
	v := r.visit()
	v.at(t, a)
	must(t, equal("connections", r.value("connections_active", r.addr), 1), equal("with it", r.value("backend_connections_active", a.addr), 1))
	v.hangUp()
	r.empty()

	var got []string
	for name, f := range r.gather() {
		var labels []string
		for _, l := range f.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		got = append(got, name+"{"+strings.Join(labels, ",")+"}")
	}
	slices.Sort(got)
	want := slices.Sorted(slices.Values(series))
	if !slices.Equal(got, want) {
		t.Errorf("series:\ngot  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
	for _, tt := range []struct {
		name, label string
		want        float64
	}{
		{"connections_accepted_total", r.addr, 1},
		{"connections_active", r.addr, 0},
		{"connection_duration_seconds", r.addr, 1},
		{"backend_connections_total", a.addr, 1},
		{"backend_connections_active", a.addr, 0},
		{"backend_connections_closed_total", "client", 1},
		{"backend_connect_duration_seconds", a.addr, 1},
		{"backend_state", "ready", 1},
		{"backend_state", "dead", 0},
		{"backend_up", a.addr, 1},
		{"backends", "ready", 1},
		{"fail_open", "", 0},
		{"connections_held", "", 0},
		{"config_reloads_total", "success", 0},
	} {
		if got := r.value(tt.name, tt.label); got != tt.want {
			t.Errorf("%s of %s: got %v, want %v", tt.name, tt.label, got, tt.want)
		}
	}
	if n := r.value("received_bytes_total", a.addr); n < 100 {
		t.Errorf("%v bytes were received", n)
	}

	hash := r.value("config_hash", "")
	with := func(backends ...string) {
		t.Helper()
		cfg := *r.cfg.Load()
		cfg.Backends = backends
		must(t, r.Reload(cfg))
		r.gather()
	}
	with(b.addr)
	must(t, equal("draining", r.value("backends", "draining"), 1))
	with(a.addr, b.addr) // back before the drain ends
	must(t, equal("draining", r.value("backends", "draining"), 0), equal("counted on", r.value("backend_connections_total", a.addr), 1))
	with(b.addr)
	r.endDrains()
	eventually(t, "it is forgotten", func() error { return equal("its series", r.value("backend_up", a.addr), -1) })
	with(a.addr, b.addr)
	must(t, equal("counted anew", r.value("backend_connections_total", a.addr), 0))
	must(t, r.SetDiscovered([]string{b.addr, b.addr}))
	r.gather()
	must(t, equal("reloads", r.value("config_reloads_total", "success"), 4))
	if r.value("config_hash", "") == hash {
		t.Error("the hash does not change")
	}
	a.status.Store(500) // the last resort
	b.status.Store(500)
	eventually(t, "fail open", func() error {
		return errors.Join(equal("fail_open", r.value("fail_open", ""), 1), equal("backend_up", r.value("backend_up", b.addr), 0))
	})
}

// count returns how many series there are; a histogram has one for each bucket, and three.
func countSeries(all map[string]*dto.MetricFamily) (n int) {
	for _, f := range all {
		for _, m := range f.Metric {
			n++
			if h := m.Histogram; h != nil {
				n += len(h.Bucket) + 2
			}
		}
	}
	return n
}

// Sixty backends have a few series each, and the sum of the rest; with detail they have all.
func TestSeriesOfManyBackends(t *testing.T) {
	a := newAPIServer(t)
	cfg := checkedConfig(a)
	for i := range 59 { // they refuse
		cfg.Backends = append(cfg.Backends, fmt.Sprintf("127.0.1.%d:1", i+1))
	}
	r := run(t, cfg, Options{})
	r.awaitTier(a, tierReady)
	v := r.visit()
	v.at(t, a)
	v.hangUp()
	r.empty()
	eventually(t, "all are checked", func() error {
		return equal("backends", r.value("backends", "dead")+r.value("backends", "ready"), 60)
	})
	const most = 600
	n := countSeries(r.gather())
	if n > most-200 { // as many are the process's own
		t.Errorf("got %d series of 60 backends", n)
	}
	for _, name := range []string{"backend_up", "backend_connections_active", "backend_connections_total"} {
		must(t, equal(name, len(r.gather()[name].Metric), 60))
	}
	for _, name := range []string{"backend_connect_failures_total", "backend_connect_duration_seconds", "health_checks_total", "received_bytes_total"} {
		if r.value(name, allBackends) < 0 || r.value(name, a.addr) >= 0 {
			t.Errorf("%s is not the sum of all", name)
		}
	}
	must(t, equal("connects", r.value("backend_connect_duration_seconds", allBackends), 1))
	if n := r.value("received_bytes_total", allBackends); n < 100 {
		t.Errorf("%v bytes were received", n)
	}

	closed := r.value("backend_connections_closed_total", "client")
	must(t, equal("closed", closed, 1))
	less := *r.cfg.Load()
	less.Backends = append([]string{}, cfg.Backends[1:]...)
	less.DrainTimeout = 0
	must(t, r.Reload(less))
	eventually(t, "it is forgotten", func() error { return equal("its series", r.value("backend_up", a.addr), -1) })
	must(t, equal("closed, of a backend that is gone", r.value("backend_connections_closed_total", "client"), closed))

	less.Metrics = MetricsEach
	must(t, r.Reload(less))
	if detailed := countSeries(r.gather()); detailed < 10*n {
		t.Errorf("got %d series with detail, %d without", detailed, n)
	}
	if r.value("backend_connect_failures_total", less.Backends[0]) < 0 || r.value("backend_connect_failures_total", allBackends) >= 0 {
		t.Error("with detail, the series are not each backend's")
	}
	less.Metrics, less.Backends = MetricsSum, less.Backends[:1]
	must(t, r.Reload(less))
	eventually(t, "one backend is left", func() error { return equal("backends", len(r.gather()["backend_up"].Metric), 1) })
	if r.value("backend_connect_failures_total", allBackends) < 0 {
		t.Error("the sum of one backend is missing")
	}
}
