package benchlb

import (
	"strings"
	"testing"
)

// TestTable: ratios are to the better of nginx and HAProxy, of the medians and of the
// rounds.
func TestTable(t *testing.T) {
	r := newResults()
	for side, values := range map[string][]float64{
		"kthwd": {60, 66, 54}, "nginx": {50, 55, 60}, "haproxy": {40, 66, 50}, "tcpproxy": {99, 99, 99},
	} {
		for round, v := range values {
			r.add(metricRequests, side, round, v)
			r.add(metricP99, side, round, 1000/v)
		}
	}
	r.add(metricIdleMemory, "kthwd", 0, 4)
	var out strings.Builder
	r.table(&out, []string{"kthwd", "nginx", "haproxy"})
	want := strings.Join([]string{
		"what                                kthwd                nginx                haproxy              ratio             reach       met?",
		"requests/s, kept-alive connections  60.0 /s (54.0–66.0)  55.0 /s (50.0–60.0)  50.0 /s (40.0–66.0)  1.09 (0.90–1.20)  1 × better  yes",
		"idle connections: user memory each  4.00 KiB             —                    —                    —                 ≤ 10        yes",
		"added latency at half load, p99     16.7 µs (15.2–18.5)  18.2 µs (16.7–20.0)  20.0 µs (15.2–25.0)  0.92 (0.83–1.11)  1 × nginx   yes",
		"",
	}, "\n")
	if got := out.String(); got != want {
		t.Errorf("table:\n%s\nwant:\n%s", got, want)
	}
}

func TestMet(t *testing.T) {
	for _, test := range []struct {
		name   string
		metric *metric
		kthwd  float64
		others float64
		want   string
	}{
		{"as many as the better", metricRequests, 50, 50, "yes"},
		{"fewer", metricRequests, 49, 50, "no"},
		{"not enough more", metricBulk, 12, 10, "no"},
		{"latency as low as nginx's", metricP99, 5, 5, "yes"},
		{"higher", metricP99, 6, 5, "no"},
		{"a number", metricIdleMemory, 10, 1, "yes"},
		{"too high a number", metricIdleMemory, 11, 100, "no"},
		{"for information", metricRequestCPU, 1, 2, ""},
	} {
		r := newResults()
		r.add(test.metric, "kthwd", 0, test.kthwd)
		r.add(test.metric, "nginx", 0, test.others)
		r.add(test.metric, "haproxy", 0, test.others)
		if got := r.summary(test.metric).Met; got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	var sorted []int64
	for i := range 100 {
		sorted = append(sorted, int64(i+1)*1000)
	}
	if got := percentile(sorted, 50); got != 51 {
		t.Errorf("p50: got %v, want 51", got)
	}
	if got := percentile(sorted, 99); got != 100 {
		t.Errorf("p99: got %v, want 100", got)
	}
}
