package preflight

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
	"kthwd/appliance/cgroup"
)

const (
	filesWarn = 65536
	filesFail = 512 // an empty control plane opens about 200; a compaction, a backup and a few clients come on top

	threadsWarn = 1024 // each file operation that waits for a slow disk takes one
	threadsFail = 64   // an idle control plane has about ten, one that starts twice as many

	fileSizeFail = 128 << 20 // a piece of etcd's write-ahead log has 64 MB, the audit log 100 MiB

	dataWarn = 2 << 30
	dataFail = 512 << 20 // an empty control plane holds 0.4 GiB

	spaceMore = 2 << 30 // of address space, beyond the database: Go's heap, stacks and the binary
)

// limit is a limit of the kernel on this process.
type limit struct {
	what       string // as preflight shows it
	few        string // "too few open files allowed"
	have       uint64 // math.MaxUint64 for no limit
	said       string // what have is made of, where it is not simply the limit
	fail, warn uint64
	number     func(uint64) string
	do         string
}

// limits reads the limits of a controller whose etcd has a database of at most quota bytes.
func limits(quota uint64) []limit {
	all := []limit{
		files(), threads(),
		{what: "file size", few: "files may not become large enough", have: rlimit(unix.RLIMIT_FSIZE), fail: fileSizeFail, warn: max(quota, fileSizeFail), number: size,
			do: "set LimitFSIZE=infinity in the unit, or raise the limit with ulimit -f"},
		{what: "data size", few: "too little memory allowed", have: rlimit(unix.RLIMIT_DATA), fail: dataFail, warn: dataWarn, number: size,
			do: "set LimitDATA=infinity in the unit, or raise the limit with ulimit -d"},
		// etcd maps its database at once as it may become (etcd/server/storage/backend.go).
		{what: "address space", few: "too little address space allowed", have: rlimit(unix.RLIMIT_AS), fail: quota + quota/10 + spaceMore, number: size,
			do: "set LimitAS=infinity in the unit, or raise the limit with ulimit -v"},
	}
	return append(all, tasks()...)
}

// files is the limit on descriptors. Go has raised the soft limit to the hard one before.
func files() limit {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		l.Max = unix.RLIM_INFINITY // an unknown limit is none
	}
	return limit{what: "open files", few: "too few open files allowed", have: l.Max, fail: filesFail, warn: filesWarn, number: count,
		do: fmt.Sprintf("set LimitNOFILE=%d in the unit, or raise the limit with ulimit -Hn before the start", filesWarn)}
}

// threads is the limit on the threads of the user, which does not hold for root.
func threads() limit {
	l := limit{what: "threads", few: "too few threads allowed", have: rlimit(unix.RLIMIT_NPROC), fail: threadsFail, warn: threadsWarn, number: count,
		do: "set LimitNPROC=infinity in the unit, or raise the limit with ulimit -u"}
	const many = 16 << 10 // not worth the look at each process
	switch {
	case os.Getuid() == 0:
		l.have = unix.RLIM_INFINITY
	case l.have < many:
		used := threadsOf(os.Getuid())
		l.said = fmt.Sprintf("the limit of user %d is %d, with %d in use", os.Getuid(), l.have, used)
		l.have -= min(used, l.have)
	}
	return l
}

// threadsOf counts the threads of a user's processes, this one left out.
func threadsOf(uid int) (n uint64) {
	found, _ := filepath.Glob("/proc/[0-9]*/status")
	owner, own := []byte("\nUid:\t"+strconv.Itoa(uid)+"\t"), fmt.Sprintf("/proc/%d/status", os.Getpid())
	for _, path := range found {
		status, err := os.ReadFile(path)
		if err != nil || path == own || !bytes.Contains(status, owner) {
			continue
		}
		_, rest, _ := bytes.Cut(status, []byte("\nThreads:\t"))
		number, _, _ := bytes.Cut(rest, []byte("\n"))
		threads, _ := strconv.ParseUint(string(number), 10, 64)
		n += threads
	}
	return n
}

// tasks are the limits of the control groups.
func tasks() (all []limit) {
	for _, g := range cgroup.OwnTasks() {
		most, used, ok := g.Limit()
		if !ok {
			continue
		}
		all = append(all, limit{
			what: "tasks", few: "too few threads allowed", have: most - min(used, most), fail: threadsFail, warn: threadsWarn, number: count,
			said: fmt.Sprintf("the limit of the control group %s is %d, with %d in use", g.Name, most, used),
			do:   "set TasksMax=infinity with systemctl edit kthwd-controller, or raise the container's limit",
		})
	}
	return all
}

func rlimit(resource int) uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(resource, &l); err != nil {
		return unix.RLIM_INFINITY
	}
	return l.Cur
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }

// found says what there is.
func (l limit) found() string {
	switch {
	case l.said != "":
		return l.said
	case l.have == unix.RLIM_INFINITY:
		return "unlimited"
	}
	return l.number(l.have)
}

// EnoughLimits fails if the kernel allows this process less than a control plane needs. quota
// is the size in bytes that etcd's database may reach.
func EnoughLimits(quota uint64) error {
	var all []error
	for _, l := range limits(quota) {
		if l.have >= l.fail {
			continue
		}
		said := l.said
		if said == "" {
			said = "the limit is " + l.number(l.have)
		}
		all = append(all, advice.With(fmt.Errorf("%s: %s, and a control plane needs %s", l.few, said, l.number(l.fail)), l.do))
	}
	return errors.Join(all...)
}

// Limits checks the limits of a controller; see EnoughLimits.
func Limits(quota uint64) (all []Result) {
	for _, l := range limits(quota) {
		r := Result{What: l.what, Verdict: OK, Found: l.found()}
		switch {
		case l.have < l.fail:
			r.Verdict, r.Do = Fail, fmt.Sprintf("a control plane needs %s; %s", l.number(l.fail), l.do)
		case l.have < l.warn:
			r.Verdict, r.Do = Warn, fmt.Sprintf("%s leaves room for load; %s", l.number(l.warn), l.do)
		}
		all = append(all, r)
	}
	return all
}

// Files checks how many file descriptors a load balancer may open: it serves as many clients as
// it can.
func Files() Result {
	l := files()
	r := Result{What: l.what, Verdict: OK, Found: l.found()}
	if l.have < l.warn {
		r.Verdict, r.Do = Warn, "each client needs two; "+l.do
	}
	return r
}
