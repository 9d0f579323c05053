package names

import (
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
// prints how much more kthwd's take. Nothing fails.
func TestBench(t *testing.T) {
	turns, err := strconv.Atoi(os.Getenv("KTHWD_BENCH_NAMES"))
	if err != nil {
		t.Skip("make bench-names runs it")
	}
	kthwd, kubectl := kthwtest.Binary(t), kthwtest.Tool(t, "k8s.io/kubernetes/cmd/kubectl")
	rows := []struct{ ours, theirs []string }{
		{[]string{"kubectl", "version", "--client"}, []string{"version", "--client"}},
		{[]string{"kubectl", "__complete", "get", "--output", ""}, []string{"__complete", "get", "--output", ""}},
		{[]string{"kubectl", "get", "--help"}, []string{"get", "--help"}},
		{[]string{"version"}, []string{"version", "--client"}},
		{[]string{"__complete", "pki", ""}, []string{"__complete", "get", "--output", ""}},
	}
	for _, row := range rows {
		var ours, theirs []cost
		for range turns {
			theirs = append(theirs, costOf(t, kubectl, row.theirs))
			ours = append(ours, costOf(t, kthwd, row.ours))
		}
		our, their := medians(ours), medians(theirs)
		t.Logf("kthwd %-40s time %.2f, CPU time %.2f of kubectl's %q (%v); at most %d MiB beside %d",
			strings.Join(row.ours, " "), ratio(our.wall, their.wall), ratio(our.cpu, their.cpu), row.theirs, their.wall.Round(time.Millisecond), our.rss>>10, their.rss>>10)
	}
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

func medians(all []cost) cost {
	median := func(of func(cost) float64) float64 {
		var values []float64
		for _, c := range all {
			values = append(values, of(c))
		}
		return report.Median(values)
	}
	return cost{
		time.Duration(median(func(c cost) float64 { return float64(c.wall) })),
		time.Duration(median(func(c cost) float64 { return float64(c.cpu) })),
		int64(median(func(c cost) float64 { return float64(c.rss) })),
	}
}

func ratio(a, b time.Duration) float64 { return a.Seconds() / b.Seconds() }
