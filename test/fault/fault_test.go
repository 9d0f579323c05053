// Package fault does to the real kthwd what happens to a real one: it loses
// leases, quorum, disks and its life, and is given what it cannot use.
//
// Each test starts its own controllers, on free ports and directories of their
// own, and waits for conditions. Time decides nothing but how long a condition
// may take; the one exception is stays, which looks for as long as it is told.
package fault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/supervise"
	"kthwd/test/kthwtest"
)

const (
	kcm   = "kube-controller-manager"
	sched = "kube-scheduler"
	soon  = kthwtest.Soon
)

// stays fails unless cond holds at every look for the length of d.
func stays(t *testing.T, what string, d time.Duration, cond func() error) {
	t.Helper()
	end := time.After(d)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := cond(); err != nil {
			t.Fatalf("%s for %v: %v", what, d, err)
		}
		select {
		case <-tick.C:
		case <-end:
			return
		}
	}
}

// component is the state record of one component.
func component(c *kthwtest.Controller, name string) (supervise.Status, error) {
	r, err := c.Status()
	if err != nil {
		return supervise.Status{}, err
	}
	for _, s := range r.Components {
		if s.Name == name {
			return s, nil
		}
	}
	return supervise.Status{}, fmt.Errorf("no component %s in the status", name)
}

// isLeading is nil when the component says that it leads.
func isLeading(c *kthwtest.Controller, name string) error {
	s, err := component(c, name)
	if err == nil && (s.State != supervise.Ready || s.Reason != "leading") {
		err = fmt.Errorf("%s is %s: %s", name, s.State, s.Reason)
	}
	return err
}

// bridge asks the health bridge.
func bridge(c *kthwtest.Controller, path string) (code int, body string, err error) {
	return ask(http.DefaultTransport, fmt.Sprintf("http://%s:%d%s", c.Address, c.Ports.Health, path))
}

func ask(transport http.RoundTripper, url string) (code int, body string, err error) {
	client := http.Client{Transport: transport, Timeout: soon}
	resp, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// insecure is for a port whose certificate is not what a test is about.
func insecure() *http.Transport {
	return &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
}

// goroutines is how many there are in the process, by the API server's metrics.
func goroutines(ctx context.Context, client kubernetes.Interface) (int, error) {
	data, err := client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^go_goroutines (\d+)$`).FindSubmatch(data)
	if m == nil {
		return 0, errors.New("no go_goroutines among the metrics")
	}
	return strconv.Atoi(string(m[1]))
}

// ownConnection is a client that shares no connection with others.
func ownConnection(t *testing.T, c *kthwtest.Controller) kubernetes.Interface {
	t.Helper()
	config := c.RESTConfig(t)
	config.Dial = (&net.Dialer{}).DialContext // not shared, see client-go/transport/cache.go
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Data: data}
}

// stop sends SIGTERM through what and checks the exit code.
func stop(t *testing.T, c *kthwtest.Controller, s os.Signal, want int) {
	t.Helper()
	if err := c.Cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	if got := c.Wait(t, soon); got != want {
		t.Fatalf("after %v: got exit code %d, want %d; log:\n%s", s, got, want, c.Log.Tail(40))
	}
}

// again starts a controller on the directory and ports of one that has ended.
func again(t *testing.T, c *kthwtest.Controller, o kthwtest.Options) *kthwtest.Controller {
	t.Helper()
	o.Dir, o.Ports, o.Address = c.Dir, &c.Ports, c.Address
	return kthwtest.Start(t, o)
}

// outcome is how a kthwd that was refused, or gave up, has ended.
type outcome struct {
	code   int
	stderr string
}

// runToEnd runs kthwd until it ends by itself.
func runToEnd(t *testing.T, prepare func(*exec.Cmd), args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, kthwtest.Binary(t), args...)
	cmd.Stderr = &stderr
	if prepare != nil {
		prepare(cmd)
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s: %v", cmd, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("kthwd %s did not end by itself:\n%s", strings.Join(args, " "), &stderr)
	}
	return outcome{cmd.ProcessState.ExitCode(), typed(t, stderr.String())}
}

// trace is what a Go program that crashes writes.
var trace = regexp.MustCompile(`(?m)^(panic: |fatal error: |goroutine \d+ )`)

// errorLines are what a person is told at the end, without the log.
func (o outcome) errorLines() (problems, hints []string) {
	for line := range strings.SplitSeq(o.stderr, "\n") {
		if p, ok := strings.CutPrefix(line, "kthwd: error: "); ok {
			problems = append(problems, p)
		}
		if h, ok := strings.CutPrefix(line, "kthwd: hint: "); ok {
			hints = append(hints, h)
		}
	}
	return problems, hints
}

// check wants the exit code, one error line with all of parts, a hint that has
// hint in it (none is wanted for "-"), and no stack trace.
func (o outcome) check(t *testing.T, code int, hint string, parts ...string) {
	t.Helper()
	problems, hints := o.errorLines()
	if o.code != code {
		t.Errorf("exit code: got %d, want %d", o.code, code)
	}
	if len(problems) != 1 || slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(problems[0], p) }) {
		t.Errorf("errors: got %q, want one with %q", problems, parts)
	}
	if hint != "-" && (len(hints) != 1 || !strings.Contains(hints[0], hint)) {
		t.Errorf("hints: got %q, want one with %q", hints, hint)
	}
	if trace.MatchString(o.stderr) {
		t.Error("got a stack trace, want none")
	}
	if t.Failed() {
		t.Logf("standard error:\n%s", o.stderr)
	}
}

// contents is the hash of each file below dir; what only says that kthwd was
// here is left out.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case name == "run" && d.IsDir():
			return fs.SkipDir
		case name == "kthwd.lock" || name == "instance-id" || name == "member.json" || name == ".":
			return nil
		case !d.Type().IsRegular():
			found[name] = info.Mode().String()
			return nil
		}
		data, err := os.ReadFile(path)
		found[name] = fmt.Sprintf("%v %d %x", info.Mode(), len(data), sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// sameContents fails unless dir is as it was.
func sameContents(t *testing.T, dir string, before map[string]string) {
	t.Helper()
	after := contents(t, dir)
	for name, was := range before {
		if is, ok := after[name]; !ok {
			t.Errorf("%s is gone", name)
		} else if is != was {
			t.Errorf("%s has changed: was %s, is %s", name, was, is)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s is new", name)
		}
	}
}

// copyDir copies a data directory, but for its sockets and lock.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "data")
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(from, path)
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, name), info.Mode().Perm())
		case !d.Type().IsRegular() || name == "kthwd.lock":
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), data, info.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}
