package bench

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/backup/step"
	"kthwd/test/kthwtest"
	"kthwd/test/report"
)

// backupTurn is what one turn has measured; a quiet one has no processes and no steps.
type backupTurn struct {
	longest, median time.Duration // of the puts
	all             []putTime     // by begin
	took            time.Duration // of the turn
	grown, anon     float64       // the daemon's RSS at its highest less that at the begin, in MiB; anon without pages of files
	begin           float64       // the daemon's RSS at the begin, in MiB
	create, check   float64       // highest RSS of kthwd backup create and of the child that verifies, in MiB
	checkAnon       float64       // of the child, without the pages of files, which is the restored database for the most part
	steps           map[string]time.Duration
	file            string
	size            int64
	checked         time.Time // begin of the verification's first step, within some ms
	ended           time.Time // of the command
}

// putTime is one put.
type putTime struct {
	sent time.Time
	took time.Duration
}

// backupSteps are the steps of a backup in their order.
var backupSteps = []string{step.Snapshot, step.Pack, step.Extract, step.Restore, step.Read, step.Files}

// afterwards is what the command does after the last step: it deletes what it no longer needs.
const afterwards = "afterwards"

// longestIn returns the longest put that went on in each step, in ms. What a command does between
// pack and extract counts as pack.
func (m backupTurn) longestIn() map[string]float64 {
	found := map[string]float64{}
	look := func(step string, begin, end time.Time) {
		for _, p := range m.all {
			if p.sent.Before(end) && p.sent.Add(p.took).After(begin) {
				found[step] = max(found[step], p.took.Seconds()*1000)
			}
		}
	}
	split := slices.Index(backupSteps, step.Extract)
	end := m.checked
	for _, step := range slices.Backward(backupSteps[:split]) {
		begin := end.Add(-m.steps[step])
		look(step, begin, end)
		end = begin
	}
	begin := m.checked
	for _, step := range backupSteps[split:] {
		end := begin.Add(m.steps[step])
		look(step, begin, end)
		begin = end
	}
	look(afterwards, begin, m.ended)
	return found
}

// putsAt returns the share of the puts of all turns that took no longer than the result, in ms.
func putsAt(turns []backupTurn, share float64) float64 {
	var all []time.Duration
	for _, m := range turns {
		for _, p := range m.all {
			all = append(all, p.took)
		}
	}
	slices.Sort(all)
	return all[int(float64(len(all)-1)*share)].Seconds() * 1000
}

// TestBackup measures what a backup of a large database costs the cluster: make bench-backup. Puts
// go on all the time; quiet turns and turns with a backup take turns, as long as one another. A
// target that is missed is reported and fails nothing.
func TestBackup(t *testing.T) {
	if os.Getenv("KTHWD_BENCH_BACKUP") == "" {
		t.Skip("a benchmark of minutes: make bench-backup, or KTHWD_BENCH_BACKUP=1")
	}
	size := sizeOf(t, os.Getenv("KTHWD_BENCH_SIZE"))
	rounds := number(t, "KTHWD_BENCH_ROUNDS", 3)
	b := &bench{settings: readSettings(t)}
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--etcd-arg=quota-backend-bytes=" + strconv.FormatInt(max(8<<30, 3*size), 10)}})
	c.WaitReady(t)
	client := c.Etcd(t)
	fillDatabase(t, client, size)
	identity, archives := filepath.Join(t.TempDir(), "key.txt"), t.TempDir()
	if out, err := exec.CommandContext(t.Context(), kthwtest.Binary(t), "backup", "keygen", identity).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	create := func() backupTurn {
		cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), "backup", "create", "--config=", "--data-dir="+c.Dir, "--dir="+archives,
			"--recipient="+identity+".pub", "--keep=1", "--step-back", "--output=json")
		return measureTurn(t, c, client, func() backupTurn { return runBackup(t, cmd, archives) })
	}
	last := create() // not counted: it says how long a quiet turn must be
	var quiet, busy []backupTurn
	for round := range rounds {
		for turn := range 2 {
			b.awaitQuiet(t)
			if (round+turn)%2 == 0 {
				quiet = append(quiet, measureTurn(t, c, client, func() backupTurn { time.Sleep(last.took); return backupTurn{} }))
				continue
			}
			last = create()
			busy = append(busy, last)
		}
	}
	verify := exec.CommandContext(t.Context(), kthwtest.Binary(t), "backup", "verify", last.file, "--identity="+identity, "--output=json")
	begun := time.Now()
	verified := runBackup(t, verify, archives)
	writeBackup(t, size, quiet, busy, time.Since(begun), verified.check)
}

// sizeOf reads a size such as 256M or 1G.
func sizeOf(t *testing.T, text string) int64 {
	t.Helper()
	if text == "" {
		return 256 << 20
	}
	shift := map[byte]int{'K': 10, 'M': 20, 'G': 30}[text[len(text)-1]]
	n, err := strconv.ParseInt(strings.TrimRight(text, "KMG"), 10, 32)
	if err != nil || n < 1 || shift == 0 {
		t.Fatalf("KTHWD_BENCH_SIZE=%s: want a size such as 256M or 1G", text)
	}
	return n << shift
}

// fillDatabase puts values that cannot be compressed until the database is as large.
func fillDatabase(t *testing.T, client *clientv3.Client, size int64) {
	t.Helper()
	const one = 16 << 10
	keys := make(chan int64)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			value := make([]byte, one)
			for i := range keys {
				_, _ = rand.Read(value)
				if _, err := client.Put(t.Context(), fmt.Sprintf("/bench/fill/%d", i), string(value)); err != nil {
					t.Errorf("fill the database: %v", err)
				}
			}
		})
	}
	for i := int64(0); i < size/one && !t.Failed(); i++ {
		keys <- i
	}
	close(keys)
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// measureTurn puts small values, one after the other, and looks at the daemon's memory, while do runs.
func measureTurn(t *testing.T, c *kthwtest.Controller, client *clientv3.Client, do func() backupTurn) backupTurn {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	pid := c.Cmd.Process.Pid
	begin, err := readStatus(pid)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var puts []putTime
	high := maps.Clone(begin)
	all.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			sent := time.Now()
			if _, err := client.Put(t.Context(), fmt.Sprintf("/bench/put/%d", i%100), strings.Repeat("v", 1000)); err != nil {
				t.Errorf("a put: %v", err)
				return
			}
			puts = append(puts, putTime{sent, time.Since(sent)})
			wait(ctx, 5*time.Millisecond)
		}
	})
	all.Go(func() {
		for ; ctx.Err() == nil; wait(ctx, 20*time.Millisecond) {
			if now, err := readStatus(pid); err == nil {
				for name, value := range now {
					high[name] = max(high[name], value)
				}
			}
		}
	})
	begun := time.Now()
	m := do()
	m.took = time.Since(begun)
	stop()
	all.Wait()
	if t.Failed() || len(puts) == 0 {
		t.Fatal("no put in this turn, or one has failed")
	}
	m.all = slices.Clone(puts)
	slices.SortFunc(puts, func(a, b putTime) int { return cmp.Compare(a.took, b.took) })
	m.longest, m.median = puts[len(puts)-1].took, puts[len(puts)/2].took
	m.begin = begin["VmRSS"]
	m.grown, m.anon = high["VmRSS"]-begin["VmRSS"], high["RssAnon"]-begin["RssAnon"]
	return m
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// readStatus reads the sizes in /proc/PID/status, in MiB.
func readStatus(pid int) (map[string]float64, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return nil, err
	}
	fields := map[string]float64{}
	for line := range strings.Lines(string(data)) {
		var kib float64
		name, value, _ := strings.Cut(line, ":")
		if _, err := fmt.Sscanf(value, "%f kB", &kib); err == nil {
			fields[name] = kib / 1024
		}
	}
	if len(fields) == 0 {
		return nil, errors.New("the process has ended")
	}
	return fields, nil
}

// runBackup runs kthwd backup create or verify, and watches the memory of that process and of its
// child. VmHWM is the highest RSS of a process so far, so that little is missed between two looks.
// The child makes a directory in that of the archives when its first step begins.
func runBackup(t *testing.T, cmd *exec.Cmd, archives string) (m backupTurn) {
	t.Helper()
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for ; ctx.Err() == nil; wait(ctx, 10*time.Millisecond) {
			if found, _ := filepath.Glob(filepath.Join(archives, ".kthwd-backup-*", ".kthwd-backup-*", "check", "files")); len(found) > 0 && m.checked.IsZero() {
				m.checked = time.Now()
			}
			own, _ := readStatus(cmd.Process.Pid) // nothing of a process that has ended
			m.create = max(m.create, own["VmHWM"])
			for _, child := range children(cmd.Process.Pid) {
				its, _ := readStatus(child)
				m.check, m.checkAnon = max(m.check, its["VmHWM"]), max(m.checkAnon, its["RssAnon"])
			}
		}
	}()
	err := cmd.Wait()
	m.ended = time.Now()
	stop()
	<-watched
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out.String(), said.String())
	}
	var made struct {
		File     string                   `json:"file"`
		Took     map[string]time.Duration `json:"tookNanoseconds"`
		Verified struct{ Size int64 }     `json:"verified"`
	}
	if err := json.Unmarshal([]byte(out.String()), &made); err != nil {
		t.Fatal(err)
	}
	m.file, m.steps, m.size = made.File, made.Took, made.Verified.Size
	return m
}

// children are the processes that a process has started, by any of its threads.
func children(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range lists {
		data, _ := os.ReadFile(path)
		for _, word := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(word); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// writeBackup prints a table, and one line of JSON.
func writeBackup(t *testing.T, size int64, quiet, busy []backupTurn, verify time.Duration, verifyChild float64) {
	t.Helper()
	median := func(turns []backupTurn, value func(backupTurn) float64) float64 {
		var all []float64
		for _, m := range turns {
			all = append(all, value(m))
		}
		return report.Round3(report.Median(all))
	}
	longest := func(m backupTurn) float64 { return m.longest.Seconds() * 1000 }
	var pairs []float64
	for i := range busy {
		pairs = append(pairs, report.Round3(longest(busy[i])/longest(quiet[i])))
	}
	steps := map[string]float64{}
	for _, name := range slices.Sorted(maps.Keys(busy[0].steps)) {
		steps[name] = median(busy, func(m backupTurn) float64 { return m.steps[name].Seconds() })
	}
	ratio := report.Round3(median(busy, longest) / median(quiet, longest))
	took := median(busy, func(m backupTurn) float64 { return m.took.Seconds() })
	highest := func(value func(backupTurn) float64) (most float64) {
		for _, m := range busy {
			most = max(most, value(m))
		}
		return report.Round3(most)
	}
	child := max(highest(func(m backupTurn) float64 { return m.check }), report.Round3(verifyChild))
	grown, anon := highest(func(m backupTurn) float64 { return m.grown }), highest(func(m backupTurn) float64 { return m.anon })
	met := func(ok bool) string {
		if ok {
			return "yes"
		}
		return "no"
	}

	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\tquiet\tbackup\tratio\treach\tmet?\n")
	fmt.Fprintf(w, "longest put, ms\t%.1f\t%.1f\t%.2f (of the rounds: %v)\t≤ 2\t%s\n", median(quiet, longest), median(busy, longest), ratio, pairs, met(ratio <= 2))
	for _, share := range []float64{0.99, 0.999} {
		fmt.Fprintf(w, "%v %% of the puts, ms\t%.1f\t%.1f\t%.2f\t\t\n", 100*share, putsAt(quiet, share), putsAt(busy, share), putsAt(busy, share)/putsAt(quiet, share))
	}
	byStep := map[string]float64{}
	for _, name := range append(slices.Clone(backupSteps), afterwards) {
		byStep[name] = median(busy, func(m backupTurn) float64 { return m.longestIn()[name] })
		fmt.Fprintf(w, "  longest while %s, ms\t\t%.1f\t\t\t\n", name, byStep[name])
	}
	middle := func(m backupTurn) float64 { return m.median.Seconds() * 1000 }
	fmt.Fprintf(w, "median put, ms\t%.2f\t%.2f\t%.2f\t\t\n", median(quiet, middle), median(busy, middle), median(busy, middle)/median(quiet, middle))
	fmt.Fprintf(w, "daemon at the begin, MiB\t%.1f\t%.1f\t\t\t\n", median(quiet, func(m backupTurn) float64 { return m.begin }), median(busy, func(m backupTurn) float64 { return m.begin }))
	fmt.Fprintf(w, "daemon grows, MiB\t%.1f\t%.1f\t\t≤ 64\t%s\n", median(quiet, func(m backupTurn) float64 { return m.grown }), grown, met(grown <= 64))
	fmt.Fprintf(w, "of that, no file's pages\t%.1f\t%.1f\t\t\t\n", median(quiet, func(m backupTurn) float64 { return m.anon }), anon)
	fmt.Fprintf(w, "child that verifies, MiB\t\t%.1f\t\t≤ 300\t%s\n", child, met(child <= 300))
	childAnon := highest(func(m backupTurn) float64 { return m.checkAnon })
	fmt.Fprintf(w, "of that, no file's pages\t\t%.1f\t\t≤ 300\t%s\n", childAnon, met(childAnon <= 300))
	fmt.Fprintf(w, "kthwd backup create, MiB\t\t%.1f\t\t\t\n", highest(func(m backupTurn) float64 { return m.create }))
	inTime := "" // a smaller database says little: each step has a part that does not grow
	if size >= 1<<30 {
		inTime = met(took <= 30*float64(size)/(1<<30))
	}
	fmt.Fprintf(w, "create, which verifies, s\t\t%.2f\t\t≤ 30 for each GiB\t%s\n", took, inTime)
	for _, name := range slices.Sorted(maps.Keys(steps)) {
		fmt.Fprintf(w, "  %s, s\t\t%.2f\t\t\t\n", name, steps[name])
	}
	fmt.Fprintf(w, "kthwd backup verify, s\t\t%.2f\t\t\t\n", verify.Seconds())
	w.Flush()
	line, err := json.Marshal(map[string]any{
		"bench": "kthwd-backup", "cores": runtime.NumCPU(), "rounds": len(busy), "size_mib": size >> 20, "size_archive_mib": busy[0].size >> 20,
		"put_longest_ms": map[string]float64{"quiet": median(quiet, longest), "backup": median(busy, longest)}, "put_longest_ratio": ratio, "put_longest_pairs": pairs,
		"put_longest_by_step_ms": byStep, "put_p999_ms": map[string]float64{"quiet": report.Round3(putsAt(quiet, 0.999)), "backup": report.Round3(putsAt(busy, 0.999))},
		"puts": map[string]int{"quiet": len(quiet[0].all), "backup": len(busy[0].all)}, "daemon_grows_mib": grown, "daemon_grows_anon_mib": anon, "child_mib": child, "child_anon_mib": childAnon,
		"daemon_mib": median(busy, func(m backupTurn) float64 { return m.begin }),
		"create_mib": highest(func(m backupTurn) float64 { return m.create }), "create_s": took, "steps_s": steps, "verify_s": report.Round3(verify.Seconds()),
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\n%s\nmedians of the rounds (%d); memory is the highest\n\n%s\n\n", text.String(), len(busy), line)
}
