package names

import (
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/test/kthwtest"
	"kthwd/test/report"
)

// cost is that of one run of a command.
type cost struct {
	wall, cpu time.Duration
	rss       int64 // the highest, in KiB; pages of the program's file count
}

// TestBench runs upstream's kubectl and kthwd's in turns, with commands that ask no server, and
// prints how much more kthwd's take, and one line of JSON. Nothing fails. To publish a run,
// append a line to history.jsonl here, as test/bench/doc.go says, then run make golden.
func TestBench(t *testing.T) {
	turns, err := strconv.Atoi(os.Getenv("KTHWD_BENCH_NAMES"))
	if err != nil {
		t.Skip("make bench-names runs it")
	}
	kthwd, kubectl := kthwtest.Installed(t, kthwtest.Binary(t)), kthwtest.Installed(t, kthwtest.Tool(t, "k8s.io/kubernetes/cmd/kubectl"))
	rows := []struct{ ours, theirs []string }{
		{[]string{"kubectl", "version", "--client"}, []string{"version", "--client"}},
		{[]string{"kubectl", "__complete", "get", "--output", ""}, []string{"__complete", "get", "--output", ""}},
		{[]string{"kubectl", "get", "--help"}, []string{"get", "--help"}},
		{[]string{"version"}, []string{"version", "--client"}},
		{[]string{"__complete", "pki", ""}, []string{"__complete", "get", "--output", ""}},
	}
	metrics := map[string]report.Metric{}
	for _, row := range rows {
		wall, cpu, rss := map[string][]report.Sample{}, map[string][]report.Sample{}, map[string][]report.Sample{}
		add := func(side string, turn int, c cost) {
			wall[side] = append(wall[side], report.Sample{Round: turn, Value: milliseconds(c.wall)})
			cpu[side] = append(cpu[side], report.Sample{Round: turn, Value: milliseconds(c.cpu)})
			rss[side] = append(rss[side], report.Sample{Round: turn, Value: float64(c.rss) / 1024})
		}
		for turn := range turns {
			add("kubectl", turn, costOf(t, kubectl, row.theirs))
			add("kthwd", turn, costOf(t, kthwd, row.ours))
		}
		name := strings.Join(row.ours, " ")
		for key, m := range map[string]report.Metric{
			"time": report.MetricOf("ms", wall, "kubectl"), "cpu": report.MetricOf("ms", cpu, "kubectl"), "rss": report.MetricOf("MiB", rss, "kubectl"),
		} {
			metrics[name+": "+key] = m
			t.Logf("kthwd %-40s %-4s %s beside kubectl's %q %s, ratio %s", name, key,
				m.Sides["kthwd"].Text(m.Unit), row.theirs, m.Sides["kubectl"].Text(m.Unit), report.RatioText(&m.Ratio, m.Pairs, m.Unit))
		}
	}
	line, err := json.Marshal(map[string]any{"bench": "kthwd-names", "metrics": metrics})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", line)
}

func costOf(t *testing.T, binary string, args []string) cost {
	t.Helper()
	cmd := exec.Command(binary, args...)
	begin := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", binary, args, err, out)
	}
	wall := time.Since(begin)
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return cost{wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), usage.Maxrss}
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }
