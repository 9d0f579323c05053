package child

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const stepBackEnv = "KTHWD_TEST_STEP_BACK"

// A process steps back with a lower priority, and with one processor where the packaged unit's
// filter refuses that.
func TestStepBack(t *testing.T) {
	switch os.Getenv(stepBackEnv) {
	case "filtered":
		refusePriority(t)
		fallthrough
	case "free":
		StepBack()
		nice, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		score, errScore := os.ReadFile("/proc/self/oom_score_adj")
		fmt.Println("is", runtime.GOMAXPROCS(0) == 1, 20-nice, strings.TrimSpace(string(score)), err, errScore)
		return
	}
	if runtime.GOMAXPROCS(0) == 1 {
		t.Skip("one processor")
	}
	nice, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	for how, want := range map[string]string{"free": "is false 10 500 <nil> <nil>", "filtered": fmt.Sprintf("is true %d 500 <nil> <nil>", 20-nice)} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestStepBack$")
		cmd.Env = append(os.Environ(), stepBackEnv+"="+how)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: got %v, %s; want %s", how, err, out, want)
		}
	}
}

// refusePriority refuses two system calls to this process, as ~@resources does.
func refusePriority(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 2, K: unix.SYS_SETPRIORITY},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.SYS_IOPRIO_SET},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	const everyThread = 1 // SECCOMP_FILTER_FLAG_TSYNC
	if _, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, everyThread, uintptr(unsafe.Pointer(&program))); err != 0 {
		t.Fatal(err)
	}
}
