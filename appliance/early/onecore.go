package early

import (
	"runtime/debug"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// program is the package whose main function calls Main.
const program = "kthwd/cmd/kthwd"

var allCores = sync.OnceFunc(func() {})

// Main gives the process all cores back that it may use. The main function of kthwd calls it
// first. It has no effect the second time, nor in another program.
func Main() { allCores() }

// oneCore keeps all threads on one core until Main. It does nothing where a filter of system
// calls refuses that, as kthwd's systemd units do.
//
// While packages are initialised, the main goroutine is bound to its thread (runtime/proc.go), and
// etcd and Kubernetes register some 200 metrics, each of which waits for a goroutine
// (github.com/prometheus/client_golang/prometheus/registry.go). So each takes two changes of the
// thread. With several cores they also wake up a core that sleeps, which is a quarter of the time of
// kthwd version.
//
// A test that links this package has another main function, and would stay on one core.
func oneCore() {
	if info, ok := debug.ReadBuildInfo(); !ok || info.Path != program {
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
