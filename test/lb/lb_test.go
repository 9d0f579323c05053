package lb

import (
	"crypto/x509"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"kthwd/test/lbtest"
)

func TestMain(m *testing.M) {
	lbtest.Main(m, map[string]lbtest.Helper{"backend": runBackend})
}

// row is one fault. It may produce several lines of the table.
type row struct {
	name    string
	prepare func(*lbtest.Setup) // may be nil
	run     func(*testing.T, *rig)
	alone   bool   // it takes all of the machine's CPU for a while, so no other row runs beside it
	named   bool   // the backends are one name
	listen  string // where clients connect to; "" means listenAddress, which is there from the start
}

// rows are in starting order: the longest first.
var rows = []*row{
	{name: "10", run: vanishedClients},
	{name: "17", run: pausedReaders},
	{name: "4", run: flapping},
	{name: "13", run: lossy},
	{name: "6", run: rollingRestart},
	{name: "12", run: slowReadyz},
	{name: "5", run: allDown},
	{name: "2", run: blackHole},
	{name: "9a", run: silentClients},
	{name: "3", run: stopped},
	{name: "7a", run: reload, prepare: func(s *lbtest.Setup) { s.Reloads, s.Backends = true, s.Backends[:2] }},
	{name: "7b", run: upgrade, prepare: func(s *lbtest.Setup) { s.Upgrades = true }},
	{name: "5b", run: noneReady},
	{name: "9b", run: descriptors, prepare: func(s *lbtest.Setup) { s.Descriptors = 200 }},
	{name: "11", run: starved},
	{name: "1", run: killed},
	{name: "14", run: oneName, named: true},
	{name: "15", run: addressComes, listen: lateAddress, prepare: func(s *lbtest.Setup) { s.Args, s.Late = append(s.Args, "--freebind"), true }},
	{name: "16", run: allAtOnce, alone: true},
}

// suite is shared by the rows.
type suite struct {
	sides            []*lbtest.Balancer
	figures          figures
	certificate, key string
	pool             *x509.CertPool
}

// judged reports whether the targets apply to this balancer.
func (r *rig) judged() bool { return r.side == lbtest.Kthwd }

// window is how long to wait for an event: as long as kthwd may take, and longer for the
// others, to measure how long they take.
func (r *rig) window(kthwd, others time.Duration) time.Duration {
	if r.judged() {
		return kthwd
	}
	return others
}

// TestFailures is the failure table: see the package comment.
func TestFailures(t *testing.T) {
	sides := sidesToRun(t)
	if !lbtest.OwnMachine(t, "-test.parallel=4") {
		return
	}
	lbtest.RaiseDescriptorLimit(t, 1<<16)
	nameBackends(t)
	s := &suite{sides: sides}
	s.certificate, s.key, s.pool = makeCertificate(t, lbtest.PublicDir(t))
	for group, alone := range []bool{false, true} {
		t.Run([]string{"row", "alone"}[group], func(t *testing.T) {
			for _, row := range rows {
				for _, side := range sides {
					if row.alone != alone || !wanted(row.name) {
						continue
					}
					t.Run(row.name+"-"+side.Name, func(t *testing.T) {
						if !alone {
							t.Parallel()
						}
						row.run(t, s.newRig(t, row, side))
					})
				}
			}
		})
	}
	s.report(t)
}

func wanted(row string) bool {
	only := os.Getenv("KTHWD_LB_ROWS")
	return only == "" || slices.Contains(strings.Split(only, ","), row)
}

// sidesToRun returns the balancers that can run here, and logs why the others cannot.
func sidesToRun(t *testing.T) []*lbtest.Balancer {
	t.Helper()
	peers := os.Getenv("KTHWD_LB_PEERS") != ""
	if os.Getenv("KTHWD_E2E") == "" && !peers {
		t.Skip("neither KTHWD_E2E nor KTHWD_LB_PEERS is set: run make test-e2e or make test-lb-peers")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to create namespaces")
	}
	for program, pkg := range map[string]string{"ip": "iproute2", "prlimit": "util-linux"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s (Debian: %s)", program, pkg)
		}
	}
	candidates := []*lbtest.Balancer{lbtest.Kthwd}
	if peers {
		candidates = append(candidates, lbtest.Nginx, lbtest.Haproxy)
	}
	var sides []*lbtest.Balancer
	for _, side := range candidates {
		if lacks := side.Missing(); lacks != "" {
			t.Logf("%s is left out: %s", side.Name, lacks)
			continue
		}
		sides = append(sides, side)
	}
	if len(sides) == 0 {
		t.Skip("no balancer to test")
	}
	return sides
}
