package fault

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// calmWarnings are the warnings that a healthy life may have, with the reason.
var calmWarnings = []struct{ part, why string }{
	{"is loopback", "the test's address"},
	{"queries only ports", "the test's ports"},
	{"the last run: ", "the test kills none, but a machine may"},
	{"variable of the environment in effect", "the environment of the test"},
	{"apply request took too long", "a disk that the tests share"},
	{"slow fdatasync", "the same"},
	{"leader failed to send out heartbeat on time", "the same"},
}

// inotifyLimit is the end of upstream's errors about files that it cannot watch, and watches
// again later: the kernel's limit is one for all processes of a user, so for all tests.
const inotifyLimit = "watcher: too many open files"

// outOfTime are lines that say that a time has run out, and that time. A healthy life has none of
// them, unless the machine itself stood still: one answer of etcd may take four writes, one
// after the other.
var outOfTime = []struct {
	after time.Duration
	lines *regexp.Regexp
}{
	{500 * time.Millisecond, regexp.MustCompile(`(?i)context deadline exceeded|post-timeout activity|timeout or abort while handling|TLS handshake timeout|request did not complete within requested timeout|Client\.Timeout exceeded|waiting for ReadIndex response took too long|ignored out-of-date read index response`)}, // etcd's readIndexRetryTime is the shortest
	{10 * time.Second, regexp.MustCompile(`lease lost|does not hold the lease of the component`)}, // --leader-elect-renew-deadline
}

// stall is a write beside kthwd that has taken long.
type stall struct {
	began time.Time
	took  time.Duration
}

// aftermath is how long after a stall a time may run out because of it: etcd's and the API
// server's limits are below that.
const aftermath = 15 * time.Second

// hadNoTime tells whether a line is the machine's, of the time of a stall.
func hadNoTime(line string, stalls []stall) bool {
	m := lineTime.FindStringSubmatch(line)
	if m == nil {
		return false
	}
	at, err := time.Parse(time.RFC3339Nano, m[1])
	if err != nil {
		return false
	}
	for _, o := range outOfTime {
		if o.lines.MatchString(line) && slices.ContainsFunc(stalls, func(s stall) bool {
			return 4*s.took >= o.after && at.After(s.began) && at.Before(s.began.Add(s.took+aftermath))
		}) {
			return true
		}
	}
	return false
}

var lineTime = regexp.MustCompile(`^time=(\S+) `)

// A healthy start, a workload as kubectl makes it, a second start and the stops log no
// error, and no warning but those that are named. It runs alone, and does not
// run beside the other packages of make test, because a machine without time for kthwd is not
// calm: a write to the disk beside it shows no lack of processors.
func TestHealthyLifeIsCalm(t *testing.T) {
	endToEnd(t, "make test starts and stops many, and judges no warning")
	kthwtest.Turn(t, kthwtest.Alone)
	stalls := watchMachine(t)
	c := kthwtest.Start(t, kthwtest.Options{})
	work(t, c)
	stop(t, c, syscall.SIGTERM, 0)
	quiet(t, "the first run", c.Log.String(), stalls())
	stalls = watchMachine(t)
	next := again(t, c, kthwtest.Options{})
	work(t, next)
	stop(t, next, syscall.SIGTERM, 0)
	quiet(t, "the second run", next.Log.String(), stalls())
}

// watchMachine writes to the disk as etcd does, a block at a time. The function that it
// returns ends that and lists the writes that took long.
func watchMachine(t *testing.T) (stalls func() []stall) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "block"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	found := make(chan []stall, 1)
	go func() {
		defer file.Close()
		const pause = 20 * time.Millisecond
		var all []stall
		began := time.Now()
		for ctx.Err() == nil {
			if _, err := file.WriteAt(make([]byte, 4096), 0); err != nil {
				t.Errorf("a write beside kthwd: %v", err)
			}
			if err := file.Sync(); err != nil {
				t.Errorf("a write beside kthwd: %v", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause): // later if there is no processor
			}
			now := time.Now()
			if took := now.Sub(began) - pause; 4*took >= outOfTime[0].after {
				all = append(all, stall{began, took})
			}
			began = now
		}
		found <- all
	}()
	t.Cleanup(end)
	return func() []stall {
		end()
		return <-found
	}
}

// work makes, changes and deletes objects in a namespace of its own, until that is gone.
func work(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	kubectl := func(args ...string) { c.Kubectl(t, args...) }
	kubectl("create", "namespace", "calm")
	kthwtest.WaitFor(t, "service account", time.Minute, func() error {
		_, err := c.TryKubectl(t, "get", "serviceaccount", "default", "-n", "calm")
		return err
	})
	kubectl("create", "deployment", "web", "--image=nginx", "--replicas=3", "-n", "calm")
	kubectl("expose", "deployment", "web", "--port=80", "-n", "calm")
	kubectl("create", "secret", "generic", "s", "--from-literal=a=b", "-n", "calm")
	kubectl("create", "job", "j", "--image=nginx", "-n", "calm")
	for i := range 5 {
		kubectl("scale", "deployment", "web", fmt.Sprintf("--replicas=%d", 2+i*2), "-n", "calm")
		kubectl("label", "deployment", "web", fmt.Sprintf("round=%d", i), "--overwrite", "-n", "calm")
	}
	kubectl("delete", "namespace", "calm", "--wait=false")
	kthwtest.WaitFor(t, "end of the namespace", 2*time.Minute, func() error {
		all, err := c.Client(t).CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=calm"})
		if err == nil && len(all.Items) > 0 {
			err = fmt.Errorf("still %s", all.Items[0].Status.Phase)
		}
		return err
	})
}

var raised = regexp.MustCompile(`time=\S+ level=(?:WARN|ERROR) .*`)

// quiet wants a log without errors, and without warnings that are not named.
func quiet(t *testing.T, what, log string, stalls []stall) {
	t.Helper()
lines:
	for _, line := range raised.FindAllString(log, -1) {
		if strings.Contains(line, inotifyLimit) {
			continue
		}
		if hadNoTime(line, stalls) {
			t.Logf("%s, about a time in which the machine stood still, logs: %s", what, line)
			continue
		}
		for _, allowed := range calmWarnings {
			if strings.Contains(line, " level=WARN ") && strings.Contains(line, allowed.part) {
				continue lines
			}
		}
		t.Errorf("%s logs: %s (stalls of the machine: %v)", what, line, stalls)
	}
}
