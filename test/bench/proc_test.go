package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// quietShare is the share of the machine that others may use in a quiet second.
const quietShare = 0.10

// noisyShare is the share that spoils a turn. The kernel's own threads count.
const noisyShare = 0.15

// memory is what processes hold, in MiB.
type memory struct{ rss, pss, anon float64 }

// memory adds up the processes of a control plane.
func (p *plane) memory(t *testing.T) memory {
	t.Helper()
	var sum memory
	for _, u := range p.units {
		fields, err := readRollup(u.pid())
		if err != nil {
			t.Fatalf("memory of %s: %v", u.name, err)
		}
		sum.rss += fields["Rss"]
		sum.pss += fields["Pss"]
		sum.anon += fields["Anonymous"]
	}
	return sum
}

func readRollup(pid int) (map[string]float64, error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
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
	return fields, nil
}

// ticks is the CPU time that the processes of a control plane have used, in
// hundredths of a second, by unit.
func (p *plane) ticks() map[string]float64 {
	used := map[string]float64{}
	for _, u := range p.units {
		used[u.name] = procTicks(u.pid(), 14, 15)
	}
	return used
}

// allTicks is the sum of ticks.
func (p *plane) allTicks() float64 {
	sum := 0.0
	for _, used := range p.ticks() {
		sum += used
	}
	return sum
}

// procTicks adds up fields of /proc/PID/stat by their numbers in proc(5); 0 for
// a process that is gone.
func procTicks(pid int, numbers ...int) float64 {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	// The second field is the name in brackets, which may hold spaces.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	sum := 0.0
	for _, n := range numbers {
		value, _ := strconv.ParseFloat(fields[n-3], 64)
		sum += value
	}
	return sum
}

// machineTicks is the CPU time of the whole machine that was not idle.
func machineTicks() float64 {
	data, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(data), "\n")
	sum := 0.0
	for i, field := range strings.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 8 { // name, idle, iowait, and guests, which are in user already
			continue
		}
		value, _ := strconv.ParseFloat(field, 64)
		sum += value
	}
	return sum
}

// busy is a moment from which the share of other processes is counted.
type busy struct {
	plane         *plane
	at            time.Time
	machine, ours float64
}

func since(p *plane) busy {
	return busy{p, time.Now(), machineTicks(), ourTicks(nil)}
}

// others is the share of the machine that other processes have used since. The
// control plane, which did not run then, may run now.
func (s busy) others() float64 {
	all := time.Since(s.at).Seconds() * 100 * float64(runtime.NumCPU())
	used := machineTicks() - s.machine
	return max(0, used-(ourTicks(s.plane)-s.ours)) / all
}

// ourTicks is the CPU time of this process, of the children it waited for, and of p.
func ourTicks(p *plane) float64 {
	sum := procTicks(os.Getpid(), 14, 15, 16, 17)
	if p != nil {
		for _, u := range p.units {
			if u.stopping != nil && u.running() {
				sum += procTicks(u.pid(), 14, 15)
			}
		}
	}
	return sum
}

// awaitQuiet waits, within limits, for a second in which nobody else uses the machine.
func (b *bench) awaitQuiet(t *testing.T) {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < b.quiet; {
		second := since(nil)
		time.Sleep(time.Second)
		if second.others() < quietShare {
			return
		}
	}
	t.Logf("the machine was not quiet within %v", b.quiet)
}
