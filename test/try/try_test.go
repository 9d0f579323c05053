// Package try tests kthwd try on the real binary: its exit codes, that a run leaves nothing
// behind however it ends, and the files and fake nodes that it begins with.
package try

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// run is one kthwd try.
type run struct {
	place          string // its TMPDIR
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	ended          chan struct{}
}

// start starts kthwd try with a directory for temporary files of its own, or with the given one.
func start(t *testing.T, place string, args ...string) *run {
	t.Helper()
	r := &run{place: place, ended: make(chan struct{})}
	if r.place == "" {
		r.place = memory(t)
	}
	r.cmd = exec.Command(kthwtest.Binary(t), append([]string{"try"}, args...)...)
	r.cmd.Env = append(os.Environ(), "TMPDIR="+r.place, "KUBECONFIG=/nowhere", "HTTPS_PROXY=http://127.0.0.1:1")
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	r.cmd.Stdin = strings.NewReader("from standard input\n")
	r.cmd.WaitDelay = time.Minute // a command that outlives a killed run has its output
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait()
		close(r.ended)
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		<-r.ended
	})
	return r
}

// memory is a new directory, in memory where there is some.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "kthwd-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// code waits for the end and returns the exit code.
func (r *run) code(t *testing.T) int {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(3 * time.Minute):
		t.Fatalf("has not ended; standard error:\n%s", r.stderr.String())
	}
	return r.cmd.ProcessState.ExitCode()
}

func (r *run) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
}

// ends requires an exit code, and that nothing is left.
func (r *run) ends(t *testing.T, want int) {
	t.Helper()
	if got := r.code(t); got != want {
		t.Errorf("got exit code %d, want %d; standard error:\n%s", got, want, r.stderr.String())
	}
	empty(t, r.place)
}

func empty(t *testing.T, place string) {
	t.Helper()
	entries, err := os.ReadDir(place)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s is left in %s", e.Name(), place)
	}
}

// appears waits for a file in the directory of the run, by a pattern.
func (r *run) appears(t *testing.T, pattern string) string {
	t.Helper()
	var found string
	kthwtest.WaitFor(t, pattern, 3*time.Minute, func() error {
		all, err := filepath.Glob(filepath.Join(r.place, pattern))
		if err != nil || len(all) > 0 {
			found = strings.Join(all, " ")
			return err
		}
		select {
		case <-r.ended:
			t.Fatalf("ended first; standard error:\n%s", r.stderr.String())
		default:
		}
		return fs.ErrNotExist
	})
	return found
}

// TestCommand looks at all that a command gets.
func TestCommand(t *testing.T) {
	r := start(t, "", "--", "sh", "-c", `set -e
cat
echo "args: $*"
echo "proxy: $HTTPS_PROXY"
PATH=/usr/bin:/bin:${PATH##*:} # kubectl is this binary where the machine has none
kubectl create serviceaccount x -n default >/dev/null
kubectl run p --image=none --restart=Never
kubectl get --raw /readyz
kubectl get serviceaccount -n default -o name | sort
stat -c %a "$KUBECONFIG"
grep -h ^Cpus_allowed_list: /proc/self/status /proc/$PPID/task/*/status | sort -u
exit 3`, "sh", "a b", "c")
	r.ends(t, 3)
	want := "from standard input\nargs: a b c\nproxy: http://127.0.0.1:1\npod/p created\nokserviceaccount/default\nserviceaccount/x\n600\n" + cores(t)
	if got := r.stdout.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := r.stderr.String(); got != "" {
		t.Errorf("kthwd wrote %q", got)
	}
}

// cores is the line of proc_pid_status(5) with the cores that this test may use. kthwd is on one of
// them while its packages are initialised (appliance/early), and no longer.
func cores(t *testing.T) string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	return string(regexp.MustCompile(`(?m)^Cpus_allowed_list:.*\n`).Find(status))
}

// TestRefused ends before anything is started.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := write("plain", "")
	nameless := write("nameless.yaml", "apiVersion: v1\nkind: ConfigMap\n---\nkind: X\n")
	lost := write("lost", "#!/no/such/shell\n")
	if err := os.Chmod(lost, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	object := write("object.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n")
	for _, c := range []struct {
		args string
		code int
		want []string
	}{
		{"-- kthwd-no-such-command", 127, []string{"kthwd-no-such-command: command not found"}},
		{"-- " + dir + "/missing", 127, []string{"no such file"}},
		{"-- " + plain, 126, []string{"permission denied", "chmod +x"}},
		{"-- " + dir, 126, []string{"is a directory"}},
		{"-- " + lost, 127, []string{"no such file", "the shell of its first line"}},
		{"true", 2, []string{"put -- before the command"}},
		{"--ready-nodes=-1", 2, []string{"from 0 to 100"}},
		{"--ready-nodes=101 --crd=/nowhere --apply=" + nameless, 2, []string{"from 0 to 100", "/nowhere", "nameless.yaml:1: ConfigMap without metadata.name", "nameless.yaml:2: an object without apiVersion and kind"}},
		{"--ready-nodes=many", 2, []string{"--ready-nodes"}},
		{"--crd=" + object, 2, []string{"has no object of the kind", "hint: --crd takes CustomResourceDefinitions"}},
		{"--apply=/nonexistent -- true", 2, []string{"/nonexistent: no such file", "hint: name a file, or a directory of files .yaml"}},
		{"--apply=" + dir + "/empty", 2, []string{"has no object of the kind", "none below it"}},
		{"--apply=" + write("bad.yaml", "a: b: c\n"), 2, []string{"bad.yaml:1: "}},
		{"--apply=" + write("twice.yaml", "apiVersion: v1\nkind: ConfigMap\nkind: Secret\n"), 2, []string{"twice.yaml:1: ", "kind"}},
	} {
		r := start(t, "", strings.Fields(c.args)...)
		r.ends(t, c.code)
		for _, want := range c.want {
			if !strings.Contains(r.stderr.String(), want) {
				t.Errorf("%s: %q does not say %q", c.args, r.stderr.String(), want)
			}
		}
	}
	for _, place := range []string{"/nowhere", plain, "/proc"} {
		r := start(t, place, "--", "true")
		if got := r.code(t); got != 1 || !strings.Contains(r.stderr.String(), "TMPDIR=DIR ") {
			t.Errorf("TMPDIR=%s: got exit code %d, %q, want 1 and a hint", place, got, r.stderr.String())
		}
	}
}

// TestInterrupted sends a signal at each step of a start. A step is known by the file that
// it has just made.
func TestInterrupted(t *testing.T) {
	for i, step := range []string{"kthwd-try-*", "*/bin/kubectl", "*/kthwd.log", "*/data/ca.pem", "*/data/admin.kubeconfig", "*/data/run/etcd.sock", "*/data/etcd/member/snap/db", "*/data/member.json"} {
		signal := []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP}[i%3]
		r := start(t, "", "--", "sleep", "1000")
		r.appears(t, step)
		r.signal(t, signal)
		r.ends(t, 128+int(signal))
	}
}

// TestSignals passes on what the run gets while its command runs.
func TestSignals(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ready")
	script := func(then string) []string {
		return []string{"--", "sh", "-c", "trap 'exit 7' TERM; trap 'exit 8' INT; touch " + file + "; " + then}
	}
	for _, c := range []struct {
		signal syscall.Signal
		then   string
		want   int
	}{
		{syscall.SIGTERM, "while :; do sleep 0.05; done", 7},
		{syscall.SIGINT, "while :; do sleep 0.05; done", 8},
		{syscall.SIGUSR1, "while :; do sleep 0.05; done", 128 + int(syscall.SIGUSR1)}, // no trap: it ends the command
		{0, "kill -9 $$", 128 + int(syscall.SIGKILL)},
	} {
		_ = os.Remove(file)
		r := start(t, "", script(c.then)...)
		if c.signal != 0 {
			kthwtest.WaitFor(t, "the command", 3*time.Minute, func() error { _, err := os.Stat(file); return err })
			r.signal(t, c.signal)
		}
		r.ends(t, c.want)
	}
}

// TestInterruptedAtTheEnd sends signals from the end of the command on, while the directory is
// being removed.
func TestInterruptedAtTheEnd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ends")
	r := start(t, "", "--", "touch", file)
	kthwtest.WaitFor(t, "the command", 3*time.Minute, func() error { _, err := os.Stat(file); return err })
	for ended := false; !ended; {
		select {
		case <-r.ended:
			ended = true
		default:
			r.signal(t, syscall.SIGTERM)
		}
	}
	if got := r.code(t); got != 0 && got != 128+int(syscall.SIGTERM) { // the command may still get it
		t.Errorf("got exit code %d; standard error:\n%s", got, r.stderr.String())
	}
	empty(t, r.place)
}

// TestKilled kills the run itself. Its command is told, and the next run removes what is left.
func TestKilled(t *testing.T) {
	place := memory(t)
	told := filepath.Join(t.TempDir(), "told")
	killed := start(t, place, "--", "sh", "-c", "trap 'touch "+told+"; exit' TERM; touch $(dirname $KUBECONFIG)/../runs; while :; do sleep 0.05; done")
	left := filepath.Dir(killed.appears(t, "kthwd-try-*/runs"))
	live := start(t, place, "--", "sh", "-c", "touch $(dirname $KUBECONFIG)/../runs; exec sleep infinity")
	kthwtest.WaitFor(t, "the second run", 3*time.Minute, func() error {
		all, _ := filepath.Glob(place + "/kthwd-try-*/runs")
		if len(all) != 2 {
			return fmt.Errorf("%q", all)
		}
		return nil
	})
	if err := killed.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, "word for the command", time.Minute, func() error { _, err := os.Stat(told); return err })
	killed.code(t) // until then its lock is held
	if _, err := os.Stat(left); err != nil {
		t.Fatalf("the test shows nothing: %v", err)
	}
	next := start(t, place, "--", "true")
	if got := next.code(t); got != 0 {
		t.Errorf("got exit code %d:\n%s", got, next.stderr.String())
	}
	all, _ := filepath.Glob(place + "/*")
	if len(all) != 1 || slices.Contains(all, left) {
		t.Errorf("%q are left, want that of the run that still runs", all)
	}
	live.signal(t, syscall.SIGTERM)
	live.ends(t, 128+int(syscall.SIGTERM))
}

// TestWithoutCommand prints a line for a shell.
func TestWithoutCommand(t *testing.T) {
	place := memory(t)
	out, err := exec.Command("bash", "-ec", `
exec 3< <(TMPDIR=`+place+` exec `+kthwtest.Binary(t)+` try)
read -r line <&3
eval "$line"
`+kthwtest.Binary(t)+` kubectl get namespace default -o name
kill $!
cat <&3 # until its end
`).CombinedOutput()
	if err != nil || string(out) != "namespace/default\n" {
		t.Errorf("got %q, %v", out, err)
	}
	kthwtest.WaitFor(t, "its end", time.Minute, func() error {
		if all, _ := filepath.Glob(place + "/*"); len(all) > 0 {
			return fmt.Errorf("%q are left", all)
		}
		return nil
	})
}

// TestKeep leaves the directory, which no later run removes.
func TestKeep(t *testing.T) {
	place := memory(t)
	r := start(t, place, "--keep", "--", "sh", "-c", "exit 4")
	if got := r.code(t); got != 4 {
		t.Errorf("got exit code %d, want 4:\n%s", got, r.stderr.String())
	}
	kept, is := strings.CutPrefix(strings.TrimSpace(r.stderr.String()), "kept: ")
	if !is {
		t.Fatalf("got %q, want the directory", r.stderr.String())
	}
	start(t, place, "--", "true").code(t)
	for _, file := range []string{"kthwd.log", "data/admin.kubeconfig", "data/etcd/member/snap/db"} {
		if _, err := os.Stat(filepath.Join(kept, file)); err != nil {
			t.Error(err)
		}
	}
}

// TestFiles applies definitions and objects of their kinds before the command runs.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "app.yaml")
	text := `# a comment
---
apiVersion: v1
kind: Namespace
metadata: {name: app}
---
apiVersion: v1
kind: List
items:
  - {apiVersion: example.com/v1, kind: Box, metadata: {name: small}, spec: {size: 1}}
  - {apiVersion: example.com/v1, kind: Box, metadata: {name: big, namespace: app}, spec: {size: 9}}
`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	r := start(t, "", "--crd=testdata/envtest/crds", "--apply="+file, "--", "kubectl", "get", "boxes", "-A", "--no-headers", "-o", "custom-columns=:.metadata.namespace,:.metadata.name")
	r.ends(t, 0)
	if got := strings.Join(strings.Fields(r.stdout.String()), " "); got != "app big default small" {
		t.Errorf("got %q", got)
	}
	// What the cluster refuses ends the run with the place, and with the way where there is one.
	box := "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: NAME.example.com}, spec: {group: example.com, names: {plural: NAME, kind: Crate}, scope: Namespaced, versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]}}"
	for _, tt := range []struct{ args, text, want string }{
		{"", strings.ReplaceAll(box, "NAME", "crates") + "\n---\n" + strings.ReplaceAll(box, "NAME", "cases"), "is already in use"},
		{"--crd=testdata/envtest/crds", "{apiVersion: example.com/v1, kind: Box, metadata: {name: none}, spec: {size: 0}}", "bad.yaml:1: Box none: "},
		{"", "{apiVersion: example.com/v1, kind: Box, metadata: {name: none}, spec: {size: 1}}", "hint: the API server does not serve this kind: --crd names"},
		{"", "{apiVersion: v1, kind: ConfigMap, metadata: {name: none, namespace: nowhere}}", "put the namespace first"},
	} {
		bad := filepath.Join(dir, "bad.yaml")
		if err := os.WriteFile(bad, []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		r = start(t, "", append(strings.Fields(tt.args), "--apply="+bad, "--", "touch", filepath.Join(dir, "ran"))...)
		r.ends(t, 1)
		if !strings.Contains(r.stderr.String(), tt.want) {
			t.Errorf("got %q, want %q", r.stderr.String(), tt.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("the command ran")
	}
}

// TestReadyNodes has a Deployment on fake nodes, whose leases are renewed.
func TestReadyNodes(t *testing.T) {
	r := start(t, "", "--ready-nodes=2", "--", "sh", "-ec", `
kubectl get nodes -o name
kubectl wait --for=condition=Ready nodes --all --timeout=60s >/dev/null
kubectl create deployment web --image=none --replicas=4 >/dev/null
kubectl rollout status deployment web --timeout=120s >/dev/null
kubectl get pods --no-headers -o custom-columns=:.status.phase
before=$(kubectl get lease -n kube-node-lease fake-2 -o jsonpath={.spec.renewTime})
i=0
while [ "$(kubectl get lease -n kube-node-lease fake-2 -o jsonpath={.spec.renewTime})" = "$before" ]; do i=$((i+1)); [ $i -lt 300 ]; sleep 0.2; done
kubectl delete deployment web --wait >/dev/null
kubectl wait --for=delete pods --all --timeout=60s >/dev/null
kubectl get nodes --no-headers -o custom-columns=:.metadata.annotations
`)
	r.ends(t, 0)
	got := strings.Fields(r.stdout.String())
	want := strings.Fields("node/fake-1 node/fake-2 Running Running Running Running")
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) || !strings.Contains(r.stdout.String(), "no container runs here") {
		t.Errorf("got %q; standard error:\n%s", r.stdout.String(), r.stderr.String())
	}
}

// TestManyAtOnce runs ten at the same moment, as an ordinary user: each command goes on when all
// ten have begun. They leave no file and no process.
func TestManyAtOnce(t *testing.T) {
	const many = 10
	place, together := memory(t), memory(t)
	for _, dir := range []string{place, together} {
		if err := os.Chmod(dir, 0o777|fs.ModeSticky); err != nil {
			t.Fatal(err)
		}
	}
	asNobody := os.Geteuid() == 0 && worldCanRun(kthwtest.Binary(t))
	script := fmt.Sprintf("cd %s; touch $$; until [ $(ls | wc -l) = %d ]; do [ ! -e failed ]; sleep 0.05; done; exec kubectl get --raw /readyz", together, many)
	var all []*run
	for range many {
		r := &run{place: place, ended: make(chan struct{})}
		r.cmd = exec.Command(kthwtest.Binary(t), "try", "--", "sh", "-ec", script)
		r.cmd.Env = []string{"TMPDIR=" + place, "PATH=/usr/bin:/bin"}
		r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
		r.cmd.WaitDelay = time.Minute
		if asNobody {
			r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			r.cmd.Dir = "/"
		}
		if err := r.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() {
			if r.cmd.Wait() != nil { // the others need not wait for it
				_ = os.WriteFile(filepath.Join(together, "failed"), nil, 0o644)
			}
			close(r.ended)
		}()
		t.Cleanup(func() {
			_ = r.cmd.Process.Signal(syscall.SIGTERM)
			<-r.ended
		})
		all = append(all, r)
	}
	for _, r := range all {
		if got := r.code(t); got != 0 || r.stdout.String() != "ok" {
			t.Errorf("got exit code %d, %q:\n%s", got, r.stdout.String(), r.stderr.String())
		}
	}
	empty(t, place)
	noProcess(t, "TMPDIR="+place)
}

// noProcess requires that no process has the variable in its environment.
func noProcess(t *testing.T, variable string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		data, err := os.ReadFile(file)
		if err == nil && slices.Contains(strings.Split(string(data), "\x00"), variable) {
			words, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
			t.Errorf("%s is left: %q", filepath.Dir(file), words)
		}
	}
}

// worldCanRun reports whether another user reaches a program.
func worldCanRun(path string) bool {
	for ; path != "/"; path = filepath.Dir(path) {
		if info, err := os.Stat(path); err != nil || info.Mode()&0o001 == 0 {
			return false
		}
	}
	return true
}
