package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"kthwd/appliance/durable"
)

// planned returns the files that an Ensure of an empty directory would write.
func planned(t *testing.T, l Layout) []file {
	t.Helper()
	v := newSurvey(l, testSpec())
	v.run()
	files, err := v.files()
	if err != nil || len(v.problems) > 0 {
		t.Fatal(err, v.problems)
	}
	return files
}

// TestCrash stops an Ensure after each of its steps. The next Ensure completes the
// files and changes no existing one.
func TestCrash(t *testing.T) {
	count := len(planned(t, Layout{Dir: t.TempDir()}))
	for step := 0; step <= 3*count; step += 1 + step%3 {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			t.Parallel()
			l := Layout{Dir: t.TempDir()}
			crashAfter(t, step, planned(t, l))
			before := map[string]string{}
			for name, content := range contents(t, l.Dir) {
				if !strings.HasPrefix(name, ".") {
					before[name] = content
				}
			}
			ensure(t, l, testSpec())
			after := contents(t, l.Dir)
			for name, was := range before {
				if after[name] != was {
					t.Errorf("%s has changed", name)
				}
			}
			wantWhole(t, l)
		})
	}
}

// crashAfter performs only the first steps of write: staging, keys, all others,
// cleaning up.
func crashAfter(t *testing.T, steps int, files []file) {
	t.Helper()
	var all []func() error
	for _, f := range files {
		all = append(all, func() error { return writeHidden(f) })
	}
	for _, keys := range []bool{true, false} {
		for _, f := range files {
			if f.isKey == keys {
				all = append(all, func() error { return link([]file{f}, keys) })
			}
		}
	}
	for _, f := range files {
		all = append(all, func() error { return os.Remove(durable.Hidden(f.path)) })
	}
	for _, do := range all[:steps] {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
}

// wantWhole requires every file, no hidden one, and that all of them fit.
func wantWhole(t *testing.T, l Layout) {
	t.Helper()
	report, err := Check(l, testSpec())
	if err != nil || len(report.Missing) > 0 || len(report.Kept) != 31 {
		t.Errorf("Check = missing %q, %d files, %v; want all of 31", report.Missing, len(report.Kept), err)
	}
	for name := range contents(t, l.Dir) {
		if strings.HasPrefix(name, ".") && name != "." {
			t.Errorf("%s is left", name)
		}
	}
	entries, err := List(l)
	for _, e := range entries {
		if e.Problem != "" {
			t.Errorf("%s: %s", e.File, e.Problem)
		}
	}
	if err != nil || len(entries) != 16 {
		t.Errorf("List = %d entries, %v; want 16", len(entries), err)
	}
}

// TestStaleHiddenCA: a certificate under a hidden name is used only with the key for
// which it was made.
func TestStaleHiddenCA(t *testing.T) {
	l, other := fresh(t), filled(t)
	for name := range contents(t, l.Dir) {
		if name != "ca-key.pem" {
			os.Remove(filepath.Join(l.Dir, name))
		}
	}
	put(t, durable.Hidden(l.CA()), get(t, other.CA()))
	if _, err := Ensure(l, testSpec()); len(misfits(err)) != 1 {
		t.Errorf("Ensure = %v, want the CA key refused", err)
	}
}

// TestNeverReplaces: not even a file that appears after Ensure has looked is replaced.
func TestNeverReplaces(t *testing.T) {
	l := Layout{Dir: t.TempDir()}
	files := planned(t, l)
	put(t, l.Kubeconfig(NameAdmin), "mine")
	if err := write(l.Dir, files); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), l.Kubeconfig(NameAdmin)) {
		t.Errorf("write = %v, want an error about %s", err, l.Kubeconfig(NameAdmin))
	}
	if got := get(t, l.Kubeconfig(NameAdmin)); got != "mine" {
		t.Errorf("admin.kubeconfig = %q, want it kept", got)
	}
}

// TestTogether starts Ensures in goroutines and processes at once.
func TestTogether(t *testing.T) {
	l := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}
	var wait sync.WaitGroup
	var mutex sync.Mutex
	var created []string
	for range 4 {
		wait.Go(func() {
			report, err := Ensure(l, testSpec())
			if err != nil {
				t.Error(err)
			}
			mutex.Lock()
			defer mutex.Unlock()
			created = append(created, bases(report.Created)...)
		})
		wait.Go(func() {
			out, err := helper("ensure", l.Dir).CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
			mutex.Lock()
			defer mutex.Unlock()
			created = append(created, strings.Fields(string(out))...)
		})
	}
	wait.Wait()
	wantWhole(t, l)
	if once := slices.Compact(sorted(created)); len(once) != len(created) || len(once) != 31 {
		t.Errorf("%d files created, %d of them different; want 31, each once", len(created), len(once))
	}
}

// TestKill kills a process with an Ensure at an arbitrary moment.
func TestKill(t *testing.T) {
	l := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}
	for range 5 {
		cmd := helper("ensure", l.Dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for range 1000 { // until Ensure has begun
			if names, _ := os.ReadDir(l.Dir); len(names) > 0 {
				break
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	ensure(t, l, testSpec())
	wantWhole(t, l)
}

// TestFullDisk: the size of files is limited, as on a full disk, and later it is not.
func TestFullDisk(t *testing.T) {
	for _, limit := range []int{1, 100, 600, 1200, 2000} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			l := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}
			wantRefused(t, l, helper("limit", l.Dir, strconv.Itoa(limit)), "file too large")
			ensure(t, l, testSpec())
			wantWhole(t, l)
		})
	}
}

// TestFullTmpfs is TestFullDisk with a disk that is full.
func TestFullTmpfs(t *testing.T) {
	l := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}
	os.Mkdir(l.Dir, 0o700)
	cmd := helper("tmpfs", l.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("tmpfs is mounted")) {
		t.Skipf("no tmpfs of our own here: %v %s", err, out)
	}
	if !bytes.Contains(out, []byte("no space left on device")) || !bytes.HasSuffix(out, []byte("files: 0\n")) {
		t.Errorf("Ensure on a full tmpfs: %s; want no space and no file", out)
	}
}

func wantRefused(t *testing.T, l Layout, cmd *exec.Cmd, want string) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), want) {
		t.Errorf("Ensure = %v, %s; want %q", err, out, want)
	}
	if there := contents(t, l.Dir); len(there) != 1 {
		t.Errorf("%d files are left", len(there)-1)
	}
}

// helper runs this test binary as another process.
func helper(args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), "KTHWD_PKI_HELPER=1")
	return cmd
}

func TestMain(m *testing.M) {
	if os.Getenv("KTHWD_PKI_HELPER") == "" {
		os.Exit(m.Run())
	}
	l := Layout{Dir: os.Args[2]}
	switch os.Args[1] {
	case "limit":
		limit, _ := strconv.ParseUint(os.Args[3], 10, 64)
		syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: limit})
	case "tmpfs":
		if err := syscall.Mount("tmpfs", l.Dir, "tmpfs", 0, "size=32k,mode=0700"); err != nil {
			fmt.Print(err)
			os.Exit(1)
		}
		fmt.Println("tmpfs is mounted")
	case "renew":
		fmt.Println("renewing")
		for {
			if _, err := Renew(l, RenewOptions{All: true}); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
	}
	report, err := Ensure(l, testSpec())
	fmt.Println(strings.Join(bases(report.Created), "\n"))
	if err != nil {
		fmt.Println(err)
	}
	if os.Args[1] == "tmpfs" {
		names, _ := os.ReadDir(l.Dir)
		fmt.Println("files:", len(names))
	}
	if err != nil {
		os.Exit(1)
	}
}
