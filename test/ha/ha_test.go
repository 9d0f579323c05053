package ha

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kthwd/test/lbtest"
)

// TestFaults is the table, each row once, in its order.
func TestFaults(t *testing.T) {
	requireE2E(t)
	requireMachine(t)
	if !lbtest.OwnMachine(t) {
		return
	}
	runTable(t, true)
}

// TestFaultsOnLoopback is what of the table needs no root.
func TestFaultsOnLoopback(t *testing.T) {
	requireE2E(t)
	if os.Geteuid() == 0 && os.Getenv("KTHWD_HA_LOOPBACK") == "" {
		t.Skip("TestFaults does all this, and more; with KTHWD_HA_LOOPBACK=1 it is run all the same")
	}
	quorumLost = 15 * time.Second
	runTable(t, false)
}

// TestSoak runs the rows in random order for some time.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("KTHWD_SOAK"))
	if err != nil {
		t.Skip("KTHWD_SOAK is no duration: run make soak")
	}
	network := os.Geteuid() == 0
	if network {
		requireMachine(t)
		if !lbtest.OwnMachine(t) {
			return
		}
	}
	soak(t, network, length)
}

func requireE2E(t *testing.T) {
	t.Helper()
	if os.Getenv("KTHWD_E2E") == "" {
		t.Skip("KTHWD_E2E is not set: run make test-e2e")
	}
}

func requireMachine(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces and disks of its own")
	}
	for program, pkg := range map[string]string{"ip": "iproute2", "mkfs.ext4": "e2fsprogs", "mount": "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s (Debian: %s)", program, pkg)
		}
	}
}

func runTable(t *testing.T, network bool) {
	t.Helper()
	var results []*result
	t.Cleanup(func() { whatFailed(os.Stdout, results) }) // after all logs
	r := newRig(t, network, "")
	r.random = rand.New(rand.NewPCG(seed(t), 0))
	for _, w := range rows() {
		if !wanted(w.name) || w.network && !network {
			continue
		}
		res, goOn := r.row(t, w)
		results = append(results, res)
		if !goOn {
			break
		}
	}
	if wanted("clock") {
		results = append(results, &result{Row: "clock", Fault: "clock jump of one hour on one controller", Reach: "no double leader",
			Notes: []string{"machines share one clock here: see TestLeaseOfAnotherClock and TestFenceFollowsTheLease"}})
	}
	report(t, results)
}

// row runs one row as a test of its own, and tells whether the cluster is still good for another.
func (r *rig) row(t *testing.T, w *row) (res *result, goOn bool) {
	t.Helper()
	res = &result{Row: w.name, Fault: w.fault, Reach: w.reach, Measured: "—", Problems: []string{"it was not finished"}}
	begun := time.Now()
	t.Run(w.name, func(t *testing.T) {
		res = r.run(t, w)
		goOn = true
	})
	fmt.Printf("%s %s: %s, %s (took %s)\n", time.Now().Format(clock), w.name, res.Measured, res.verdict(), seconds(time.Since(begun)))
	return res, goOn
}

func wanted(row string) bool {
	only := os.Getenv("KTHWD_HA_ROWS")
	return only == "" || slices.Contains(strings.Split(only, ","), row)
}

// seed is KTHWD_SOAK_SEED, or another one each time.
func seed(t *testing.T) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(os.Getenv("KTHWD_SOAK_SEED"), 10, 64)
	if err != nil {
		n = rand.Uint64N(1e6)
	}
	fmt.Printf("KTHWD_SOAK_SEED=%d\n", n)
	return n
}

func soak(t *testing.T, network bool, length time.Duration) {
	t.Helper()
	var results []*result
	t.Cleanup(func() { whatFailed(os.Stdout, results) }) // after all logs
	r := newRig(t, network, "")
	r.random = rand.New(rand.NewPCG(seed(t), 0))
	for end := time.Now().Add(length); time.Now().Before(end); {
		all := slices.DeleteFunc(rows(), func(w *row) bool { return !wanted(w.name) || w.network && !network })
		r.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, w := range all {
			if !time.Now().Before(end) {
				break
			}
			res, goOn := r.row(t, w)
			results = append(results, res)
			if !goOn {
				end = time.Now()
			}
		}
	}
	report(t, results)
}
