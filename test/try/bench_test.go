package try

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"kthwd/appliance/names"
	"kthwd/test/kthwtest"
	"kthwd/test/report"
)

// measured is one start: the time until a client may begin, and the CPU time of all of it.
type measured struct{ start, cpu time.Duration }

// TestBench starts kthwd try and envtest in turns, envtest with kthwd's names and with
// upstream's programs, and prints the medians, their ratios and one line of JSON. Nothing
// fails: a busy machine makes all of them slow. To publish a run, append a line to
// history.jsonl here, as test/bench/doc.go says, then run make golden.
func TestBench(t *testing.T) {
	turns, err := strconv.Atoi(os.Getenv("KTHWD_BENCH_TRY"))
	if err != nil {
		t.Skip("make bench-try runs it")
	}
	kthwd := kthwtest.Installed(t, kthwtest.Binary(t))
	dir, env := project(t)
	binary := filepath.Join(dir, "envtest.test")
	shell(t, dir, env, "go test -c -o "+binary)
	assets := t.TempDir()
	for _, name := range names.All {
		if err := os.Symlink(kthwd, filepath.Join(assets, name)); err != nil {
			t.Fatal(err)
		}
	}
	sides := map[string][]string{ // the command, and how its environment differs
		"kthwd":    {kthwd, "try", "--", "date", "+%s%N"},
		"names":    {binary, "-test.run=TestStart$"},
		"upstream": {binary, "-test.run=TestStart$"},
	}
	start, cpu := map[string][]report.Sample{}, map[string][]report.Sample{}
	for turn := range turns {
		for _, side := range []string{"kthwd", "names", "upstream"} {
			cmd := exec.Command(sides[side][0], sides[side][1:]...)
			switch side {
			case "names":
				cmd.Env = append(env, "MEASURE=1", "KUBEBUILDER_ASSETS="+assets)
			case "upstream":
				cmd.Env = append(env, "MEASURE=1", "KUBEBUILDER_ASSETS="+os.Getenv("KTHWD_TOOLS"))
			}
			m := measure(t, cmd, dir)
			start[side] = append(start[side], report.Sample{Round: turn, Value: m.start.Seconds()})
			cpu[side] = append(cpu[side], report.Sample{Round: turn, Value: m.cpu.Seconds()})
		}
	}
	metrics := map[string]report.Metric{"start": report.MetricOf("s", start, "upstream"), "cpu": report.MetricOf("s", cpu, "upstream")}
	for name, m := range metrics {
		t.Logf("%-5s kthwd try %s, envtest with kthwd's names %s, with upstream's programs %s: kthwd try is %s of the last", name,
			m.Sides["kthwd"].Text("s"), m.Sides["names"].Text("s"), m.Sides["upstream"].Text("s"), report.RatioText(&m.Ratio, m.Pairs, m.Unit))
	}
	values := memoryOfOne(t, kthwd)
	values["ten_at_once_s"] = tenAtOnce(t, kthwd)
	line, err := json.Marshal(map[string]any{"bench": "kthwd-try", "metrics": metrics, "values": values})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", line)
}

var number = regexp.MustCompile(`(?m)^(took=)?(\d+)$`)

// measure runs a command that prints its time to start, or the moment of it.
func measure(t *testing.T, cmd *exec.Cmd, dir string) measured {
	t.Helper()
	cmd.Dir = dir
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	m := number.FindSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("%q: %v\n%s", cmd.Args, err, out)
	}
	n, _ := strconv.ParseInt(string(m[2]), 10, 64) // the expression has only digits
	start := time.Duration(n)
	if len(m[1]) == 0 {
		start = time.Unix(0, n).Sub(begin)
	}
	return measured{start, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
}

// memoryOfOne returns the memory of a run half a minute after its start, in MiB.
func memoryOfOne(t *testing.T, kthwd string) map[string]float64 {
	t.Helper()
	out, err := exec.Command(kthwd, "try", "--", "sh", "-c", "sleep 30; grep -E 'VmHWM|VmRSS|RssAnon' /proc/$PPID/status; du -sm $(dirname $KUBECONFIG)").CombinedOutput()
	t.Logf("memory after 30 s, and the directory in MiB: %v\n%s", err, out)
	values := map[string]float64{}
	for _, m := range regexp.MustCompile(`(?m)^(VmHWM|VmRSS|RssAnon):\s+(\d+) kB$`).FindAllSubmatch(out, -1) {
		kib, _ := strconv.ParseFloat(string(m[2]), 64) // the expression has only digits
		values[string(m[1])+"_mib"] = report.Round3(kib / 1024)
	}
	return values
}

func tenAtOnce(t *testing.T, kthwd string) (seconds float64) {
	t.Helper()
	begin := time.Now()
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if out, err := exec.Command(kthwd, "try", "--", "true").CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	all.Wait()
	seconds = report.Round3(time.Since(begin).Seconds())
	t.Logf("ten at once: %.1f s", seconds)
	return seconds
}
