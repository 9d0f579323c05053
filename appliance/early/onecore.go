package early

import (
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"kthwd/appliance/names"
)

// program is the package whose main function calls Main.
const program = "kthwd/cmd/kthwd"

var allCores = sync.OnceFunc(func() {})

// Main gives the process all cores back that it may use. The main function of kthwd calls it
// first. It has no effect the second time, nor in another program.
func Main() { allCores() }

// oneCore keeps all threads on one core until Main. It does nothing where a filter of system
// calls refuses that.
//
// While packages are initialised, the main goroutine is bound to its thread (runtime/proc.go), and
// etcd and Kubernetes register some 200 metrics, each of which waits for a goroutine
// (github.com/prometheus/client_golang/prometheus/registry.go). So each takes two changes of the
// thread. With several cores they also wake up a core that sleeps, which is a quarter of the time of
// kthwd version.
//
// A process that stays is left alone: the kernel remembers which cores a process has asked for
// (sched_setaffinity(2)), so that it would not follow a cpuset that grows later. So is a test that
// links this package: it has another main function, and would stay on one core.
func oneCore() {
	if info, ok := debug.ReadBuildInfo(); stays(os.Args) || !ok || info.Path != program {
		return
	}
	var usual, one unix.CPUSet
	core, err := currentCore()
	if err != nil || unix.SchedGetaffinity(0, &usual) != nil || usual.Count() < 2 {
		return
	}
	one.Set(core)
	if setAffinity(&one) {
		allCores = sync.OnceFunc(func() { setAffinity(&usual) })
	}
}

// stays reports whether a command line is that of a role or of a program that serves.
func stays(argv []string) bool {
	switch names.Of(argv).Name {
	case "":
		return len(argv) < 2 || strings.HasPrefix(argv[1], "-")
	case names.Kubectl, names.Etcdctl, names.Etcdutl:
		return false
	}
	return true
}

// currentCore is the core that runs this thread. The kernel has just chosen it: it is idle if
// any is.
func currentCore() (int, error) {
	var core uint32
	if _, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&core)), 0, 0); errno != 0 {
		return 0, errno
	}
	return int(core), nil
}

// setAffinity sets it for all threads. Those that come later inherit it.
func setAffinity(cores *unix.CPUSet) (done bool) {
	_, _, errno := syscall.AllThreadsSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(*cores), uintptr(unsafe.Pointer(cores)))
	return errno == 0
}
