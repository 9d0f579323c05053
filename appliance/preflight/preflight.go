// Package preflight checks a machine before kthwd starts on it: disk, memory, clock,
// addresses, limits. A check leaves nothing changed, takes about a second at most, and
// reports what it found and what to do about it.
//
// The package links neither Kubernetes nor etcd. The caller checks ports and
// configuration.
package preflight

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/appliance/text"
)

// Verdict is the result of a check.
type Verdict string

// The verdicts. After Warn kthwd serves, but not as it should; after Fail it will not.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn"
	Fail Verdict = "fail"
)

// Result is one line of the table.
type Result struct {
	What    string  `json:"what"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	Do      string  `json:"do,omitempty"` // empty when all is well
}

// Failed reports whether a check failed.
func Failed(all []Result) bool {
	return slices.ContainsFunc(all, func(r Result) bool { return r.Verdict == Fail })
}

// WriteTable writes the results for people. paint returns a verdict as it is shown.
func WriteTable(w io.Writer, all []Result, paint func(Verdict) string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CHECK\tVERDICT\tFOUND\tWHAT TO DO")
	for _, r := range all {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.What, paint(r.Verdict), r.Found, r.Do)
	}
	return t.Flush()
}

const (
	roomWarn = 2 << 30   // bytes free on the disk: etcd's data may reach 2 GiB by default
	roomFail = 128 << 20 // etcd's log alone grows by 64 MiB at a time
)

// Directory checks that dir, or the directory in which it would be created, is
// writable and has free space.
func Directory(dir string) Result {
	r := Result{What: "data directory", Verdict: OK}
	at := dir
	for _, err := os.Stat(at); errors.Is(err, os.ErrNotExist) && at != "/"; _, err = os.Stat(at) {
		at = filepath.Dir(at)
	}
	f, err := os.CreateTemp(at, ".preflight-")
	switch {
	case errors.Is(err, unix.EROFS):
		return Result{r.What, Fail, at + ": the file system is read-only", "mount it read-write; under systemd, name it in ReadWritePaths="}
	case errors.Is(err, unix.ENOSPC):
		return Result{r.What, Fail, at + ": the disk is full", "free some space"}
	case err != nil:
		return Result{r.What, Fail, fmt.Sprintf("%s: %v", at, errors.Unwrap(err)), fmt.Sprintf("give it to the user of kthwd: chown -R %d: %s", os.Getuid(), text.ShellWord(at))}
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		return Result{r.What, Warn, fmt.Sprintf("%s: free space unknown: %v", at, err), "check it with df"}
	}
	free := fs.Bavail * uint64(fs.Bsize)
	r.Found = fmt.Sprintf("%s: writable, %s free", at, size(free))
	switch {
	case free < roomFail:
		r.Verdict, r.Do = Fail, "free some space: at least "+size(roomFail)
	case free < roomWarn:
		r.Verdict, r.Do = Warn, "free some space: "+size(roomWarn)+" for etcd's data"
	}
	return r
}

const (
	syncWant   = 10 * time.Millisecond // etcd's recommendation for the 99th percentile
	syncWrites = 200
	syncSize   = 2300 // about what etcd appends to its log for a write
	syncMost   = time.Second
)

// Sync measures how long real fdatasync calls take on dir's disk.
func Sync(dir string) Result {
	r := Result{What: "disk fdatasync", Verdict: OK}
	for _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) && dir != "/"; _, err = os.Stat(dir) {
		dir = filepath.Dir(dir)
	}
	took, err := syncTimes(dir)
	if err != nil {
		return Result{r.What, Warn, fmt.Sprintf("not measured: %v", err), ""}
	}
	slices.Sort(took)
	p99 := took[(len(took)*99-1)/100]
	r.Found = fmt.Sprintf("p99 %v of %d writes, median %v", p99.Round(10*time.Microsecond), len(took), took[len(took)/2].Round(10*time.Microsecond))
	if p99 > syncWant {
		r.Verdict, r.Do = Warn, fmt.Sprintf("etcd recommends %v: use a faster disk, or a separate one with etcd-data-dir; a slow disk loses leases", syncWant)
	}
	return r
}

func syncTimes(dir string) (took []time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".preflight-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, syncSize)
	for begun := time.Now(); len(took) < syncWrites && (time.Since(begun) < syncMost || len(took) == 0); {
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
		at := time.Now()
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return nil, err
		}
		took = append(took, time.Since(at))
	}
	return took, nil
}

const (
	memoryWarn = 1 << 30
	memoryFail = NeedsMemory
)

// NeedsMemory is how many bytes of memory an empty control plane needs: it holds 0.3 GiB.
const NeedsMemory = 384 << 20

// Memory checks how many bytes this process may use.
func Memory(usable uint64) Result {
	r := Result{What: "memory", Verdict: OK, Found: size(usable)}
	switch {
	case usable < memoryFail:
		r.Verdict, r.Do = Fail, "an empty control plane needs "+size(memoryFail)+"; raise MemoryMax=, or use a larger machine"
	case usable < memoryWarn:
		r.Verdict, r.Do = Warn, size(memoryWarn)+" leaves room for objects and watches"
	}
	return r
}

// Clock compares the time with that of a file that kthwd made earlier, if it exists,
// and asks the kernel whether the clock is synchronised.
func Clock(now time.Time, earlier string) Result {
	r := Result{What: "clock", Verdict: OK, Found: now.UTC().Format("2006-01-02 15:04 UTC")}
	if info, err := os.Stat(earlier); err == nil && info.ModTime().After(now.Add(time.Minute)) || now.Year() < 2025 {
		r.Verdict, r.Do = Fail, "set it: certificates made here would not be valid, or not yet"
		return r
	}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil { // a sandbox may forbid the call
		return r
	}
	const unsynchronised = 5 // TIME_ERROR, adjtimex(2)
	if state == unsynchronised {
		r.Found += ", not synchronised"
		r.Verdict, r.Do = Warn, "run systemd-timesyncd or chrony: certificates and leases depend on the clock"
	}
	return r
}

// Address checks that this machine has an address of the configuration.
func Address(key, address string) Result {
	r := Result{What: key, Verdict: OK, Found: address}
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.IsUnspecified() {
		return r
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return Result{key, Warn, err.Error(), ""}
	}
	has := slices.ContainsFunc(own, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(net.IP(ip.AsSlice()))
	})
	switch {
	case !has && !ip.IsLoopback():
		r.Verdict, r.Found, r.Do = Fail, address+" is not an address of this machine", "correct "+key+", or the network; ip address lists the addresses of this machine"
	case ip.IsLoopback():
		r.Verdict, r.Found, r.Do = Warn, address+" is loopback", "no other machine can reach this one; set "+key
	}
	return r
}

const leastSystemd = 247 // the first version with every option that the units use

// Systemd checks the version of systemd; ok is false where it does not run.
func Systemd() (_ Result, ok bool) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return Result{}, false
	}
	out, err := exec.Command("systemctl", "--version").Output()
	if err != nil {
		return Result{"systemd", Warn, err.Error(), ""}, true
	}
	return judgeSystemd(string(out)), true
}

// judgeSystemd parses the output of systemctl --version: "systemd 252 (252.38-1~deb12u1)".
func judgeSystemd(text string) Result {
	r := Result{What: "systemd", Verdict: OK}
	fields := strings.Fields(text)
	if len(fields) < 2 {
		return Result{r.What, Warn, fmt.Sprintf("%.40q", text), ""}
	}
	number, _, _ := strings.Cut(fields[1], ".")
	n, err := strconv.Atoi(number)
	r.Found = fields[1]
	if err != nil || n < leastSystemd {
		r.Verdict, r.Do = Warn, fmt.Sprintf("too old: it ignores some of the units' protection; use %d or later, or another service manager", leastSystemd)
	}
	return r
}

func size(n uint64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
