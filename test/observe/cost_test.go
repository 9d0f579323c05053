package observe

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"kthwd/test/kthwtest"
)

// maxScrapeCost is how much CPU time a scrape may take: this many times what it takes
// to write the same series once, as text. The rest is for gathering them.
const maxScrapeCost = 4

// TestScrapeCost holds that kthwd gathers its series cheaply. It compares CPU times of
// one run on one machine, so that neither its speed nor its load decides: of a scrape of
// all paths, and of encoding and compressing the same series in this process.
func TestScrapeCost(t *testing.T) {
	c := kthwtest.Start(t, kthwtest.Options{})
	for name, accept := range map[string]string{
		"text": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
		// A Prometheus that wants native histograms.
		"protobuf": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,text/plain;q=0.5",
	} {
		t.Run(name, func(t *testing.T) {
			header := http.Header{"Accept": {accept}, "Accept-Encoding": {"gzip"}}
			scrape, series := scrapeCost(t, c, header)
			write := writeCost(t, c)
			ratio := scrape.Seconds() / write.Seconds()
			t.Logf("%d series: %v of CPU time a scrape, %v to write them: %.1f times; at 15 s, a scrape is %.2f %% of this machine's core",
				series, scrape, write, ratio, 100*scrape.Seconds()/15)
			if ratio > maxScrapeCost {
				t.Errorf("a scrape of %d series takes %v of CPU time, %.1f times the %v that it takes to write them; want %d at most", series, scrape, ratio, write, maxScrapeCost)
			}
		})
	}
}

const costRounds = 20

// scrapeCost is the CPU time that a scrape of all paths takes. Between two of them the
// control plane is left alone for as long, and what it takes then is not counted. Nor is a scrape that kthwd gives up
// because the machine is too slow for it.
func scrapeCost(t *testing.T, c *kthwtest.Controller, header http.Header) (each time.Duration, series int) {
	t.Helper()
	scrape := func() (complete bool) {
		for _, path := range paths {
			req, err := http.NewRequest(http.MethodGet, metricsURL(c, path), nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header = header
			resp, err := plain.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			switch {
			case err == nil && resp.StatusCode == http.StatusServiceUnavailable:
				return false
			case err != nil || resp.StatusCode != http.StatusOK:
				t.Fatalf("%s: %s: %v", path, resp.Status, err)
			}
		}
		return true
	}
	scrape()
	var busy, idle time.Duration
	for rounds, tries := 0, 1; rounds < costRounds; tries++ {
		if tries > 5*costRounds {
			t.Fatalf("%d of %d scrapes were complete, want %d", rounds, tries-1, costRounds)
		}
		at, begun := processCPU(t, c), time.Now()
		if !scrape() {
			continue
		}
		rounds++
		then := processCPU(t, c)
		busy += then - at
		time.Sleep(time.Since(begun)) // the clock of a measurement
		idle += processCPU(t, c) - then
	}
	for _, families := range gathered(t, c) {
		for _, f := range families {
			series += len(f.Metric)
		}
	}
	return (busy - idle) / costRounds, series
}

// writeCost is the CPU time that this process takes to write the same series once.
func writeCost(t *testing.T, c *kthwtest.Controller) time.Duration {
	t.Helper()
	all := gathered(t, c)
	before := ownCPU(t)
	for range costRounds {
		for _, families := range all {
			var out bytes.Buffer
			zip := gzip.NewWriter(&out)
			encoder := expfmt.NewEncoder(zip, expfmt.NewFormat(expfmt.TypeOpenMetrics))
			for _, f := range families {
				if err := encoder.Encode(f); err != nil {
					t.Fatal(err)
				}
			}
			if err := zip.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return (ownCPU(t) - before) / costRounds
}

// gathered is what each path shows.
func gathered(t *testing.T, c *kthwtest.Controller) (all []map[string]*dto.MetricFamily) {
	t.Helper()
	for _, path := range paths {
		all = append(all, parse(t, read(t, plain, metricsURL(c, path))))
	}
	return all
}

// ownCPU is the time that this process has had.
func ownCPU(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// processCPU is the time that kthwd has had.
func processCPU(t *testing.T, c *kthwtest.Controller) time.Duration {
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
