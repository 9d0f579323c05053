package try

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"kthwd/appliance/names"
	"kthwd/test/kthwtest"
)

// measured is one start: the time until a client may begin, and the CPU time of all of it.
type measured struct{ start, cpu time.Duration }

// TestBench starts kthwd try and envtest in turns, envtest with kthwd's names and with
// upstream's programs, and prints the medians and their ratios. Nothing fails: a busy
// machine makes all of them slow.
func TestBench(t *testing.T) {
	turns, err := strconv.Atoi(os.Getenv("KTHWD_BENCH_TRY"))
	if err != nil {
		t.Skip("make bench-try runs it")
	}
	dir, env := project(t)
	binary := filepath.Join(dir, "envtest.test")
	shell(t, dir, env, "go test -c -o "+binary)
	assets := t.TempDir()
	for _, name := range names.All {
		if err := os.Symlink(kthwtest.Binary(t), filepath.Join(assets, name)); err != nil {
			t.Fatal(err)
		}
	}
	kinds := []string{"kthwd try", "envtest with kthwd's names", "envtest with upstream's programs"}
	results := map[string][]measured{}
	for range turns {
		for i, kind := range kinds {
			cmd := exec.Command(binary, "-test.run=TestStart$")
			switch i {
			case 0:
				cmd = exec.Command(kthwtest.Binary(t), "try", "--", "date", "+%s%N")
			case 1:
				cmd.Env = append(env, "MEASURE=1", "KUBEBUILDER_ASSETS="+assets)
			case 2:
				cmd.Env = append(env, "MEASURE=1", "KUBEBUILDER_ASSETS="+os.Getenv("KTHWD_TOOLS"))
			}
			results[kind] = append(results[kind], measure(t, cmd, dir))
		}
	}
	base := map[string]measured{}
	for _, kind := range kinds {
		base[kind] = median(results[kind])
	}
	for _, kind := range kinds {
		m, first := base[kind], base[kinds[0]]
		t.Logf("%-34s start %6.2f s, kthwd try is %.2f of it; CPU time %6.2f s, %.2f of it", kind,
			m.start.Seconds(), first.start.Seconds()/m.start.Seconds(), m.cpu.Seconds(), first.cpu.Seconds()/m.cpu.Seconds())
	}
	memoryOfOne(t)
	tenAtOnce(t)
}

func median(all []measured) (m measured) {
	slices.SortFunc(all, func(a, b measured) int { return int(a.start - b.start) })
	m.start = all[len(all)/2].start
	slices.SortFunc(all, func(a, b measured) int { return int(a.cpu - b.cpu) })
	m.cpu = all[len(all)/2].cpu
	return m
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

// memoryOfOne shows the memory of a run half a minute after its start.
func memoryOfOne(t *testing.T) {
	out, err := exec.Command(kthwtest.Binary(t), "try", "--", "sh", "-c", "sleep 30; grep -E 'VmHWM|VmRSS|RssAnon' /proc/$PPID/status; du -sm $(dirname $KUBECONFIG)").CombinedOutput()
	t.Logf("memory after 30 s, and the directory in MiB: %v\n%s", err, out)
}

func tenAtOnce(t *testing.T) {
	begin := time.Now()
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			if out, err := exec.Command(kthwtest.Binary(t), "try", "--", "true").CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	all.Wait()
	t.Logf("ten at once: %.1f s", time.Since(begin).Seconds())
}
