package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"testing"
)

var (
	farData    = &metric{"data", "objects in etcd", "MiB", target{}}
	farWritten = &metric{"written", "writes of 32 clients beside the kubelets", "/s", target{}}
	farStop    = &metric{"stop", "SIGTERM → exit", "s", target{}}

	farMetrics = []*metric{
		farData, scaleRestart, scaleRestartBound, scaleBindAgain.p50,
		scaleListsAgain[0].p50, scaleListsAgain[1].p50, scaleListsAgain[2].p50,
		scaleRestartPeak, scaleRestartRSS, scaleSettledRSS, scaleHeartbeats, farWritten,
		scaleLists[0].p50, scaleLists[1].p50, scaleLists[2].p50, scaleAlone, farStop, metricOthers,
	}
)

// report prints a table, and one line of JSON.
func (f *far) report(t *testing.T) {
	t.Helper()
	fmt.Printf("\n%d nodes, %d pods; restarts by the units: separate %d, kthwd %d\n\n", f.size.nodes, f.size.pods,
		f.bench.results.restarts[separate], f.bench.results.restarts[kthwd])
	f.bench.results.table(os.Stdout, farMetrics)
	metrics := map[string]summary{}
	for _, m := range farMetrics {
		if m != metricOthers && f.bench.results.samples[m] != nil {
			metrics[m.key] = f.bench.results.summary(m)
		}
	}
	line, err := json.Marshal(map[string]any{
		"bench": "kthwd-far", "size": f.size.String(), "lone": f.lone, "idle": f.idle.String(), "cores": runtime.NumCPU(),
		"versions": f.versions(t), "metrics": metrics,
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\n%s\n\n", line)
}
