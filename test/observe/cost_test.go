package observe

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// TestScrapeCost holds that scraping all paths each 15 s takes at most 1 % of a
// core: 150 ms of CPU time a round. It measures CPU time, which a busy machine
// does not stretch much.
func TestScrapeCost(t *testing.T) {
	c := kthwtest.Start(t, kthwtest.Options{})
	for form, accept := range map[string]string{
		"text": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
		// A Prometheus that wants native histograms.
		"protobuf": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,text/plain;q=0.5",
	} {
		t.Run(form, func(t *testing.T) { scrapeCost(t, c, accept) })
	}
}

func scrapeCost(t *testing.T, c *kthwtest.Controller, accept string) {
	const rounds = 30
	scrape := func() {
		for _, path := range paths {
			req, err := http.NewRequest(http.MethodGet, metricsURL(c, path), nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Accept", accept)
			req.Header.Set("Accept-Encoding", "gzip")
			resp, err := plain.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
	}
	scrape()
	before, begun := cpu(t, c), time.Now()
	for range rounds {
		scrape()
	}
	// What the idle control plane takes meanwhile is in it.
	each := (cpu(t, c) - before) / rounds
	t.Logf("%v of CPU time a round, %d rounds in %v: %.2f %% of a core at 15 s", each, rounds, time.Since(begun).Round(time.Millisecond), 100*each.Seconds()/15)
	if each > 150*time.Millisecond {
		t.Errorf("a round takes %v of CPU time, want at most 150 ms", each)
	}
}

// cpu is the time that a process has had.
func cpu(t *testing.T, c *kthwtest.Controller) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')'):]))
	var ticks int
	for _, f := range fields[12:14] { // utime and stime
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
