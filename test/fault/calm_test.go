package fault

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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

// hadNoTime tells whether a line is the machine's, which has needed as long as slowest for a write.
func hadNoTime(line string, slowest time.Duration) bool {
	for _, o := range outOfTime {
		if 4*slowest >= o.after && o.lines.MatchString(line) {
			return true
		}
	}
	return false
}

// A healthy start, a workload as kubectl makes it, a second start and the stops log no
// error, and no warning but those that are named. It takes the place of seven,
// because a machine without time for kthwd is not calm.
func TestHealthyLifeIsCalm(t *testing.T) {
	kthwtest.Turn(t, 7)
	longest := watchMachine(t)
	c := kthwtest.Start(t, kthwtest.Options{})
	work(t, c)
	stop(t, c, syscall.SIGTERM, 0)
	quiet(t, "the first run", c.Log.String(), longest())
	longest = watchMachine(t)
	next := again(t, c, kthwtest.Options{})
	work(t, next)
	stop(t, next, syscall.SIGTERM, 0)
	quiet(t, "the second run", next.Log.String(), longest())
}

// watchMachine writes to the disk as etcd does, a block at a time. The function that it
// returns ends that and says how long the machine has needed for the slowest.
func watchMachine(t *testing.T) (longest func() time.Duration) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "block"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	slowest := make(chan time.Duration, 1)
	go func() {
		defer file.Close()
		const pause = 20 * time.Millisecond
		most, began := time.Duration(0), time.Now()
		for ctx.Err() == nil {
			if _, err := file.WriteAt(make([]byte, 4096), 0); err != nil {
				t.Errorf("a write beside kthwd: %v", err)
			}
			if err := file.Sync(); err != nil {
				t.Errorf("a write beside kthwd: %v", err)
			}
			time.Sleep(pause) // longer if there is no processor
			now := time.Now()
			most, began = max(most, now.Sub(began)-pause), now
		}
		slowest <- most
	}()
	t.Cleanup(end)
	return func() time.Duration {
		end()
		return <-slowest
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

var raised = regexp.MustCompile(`level=(?:WARN|ERROR) .*`)

// quiet wants a log without errors, and without warnings that are not named. A write
// beside it has taken as long as longest.
func quiet(t *testing.T, what, log string, longest time.Duration) {
	t.Helper()
lines:
	for _, line := range raised.FindAllString(log, -1) {
		if strings.Contains(line, inotifyLimit) {
			continue
		}
		if hadNoTime(line, longest) {
			t.Logf("%s, while a write beside it took %v, logs: %s", what, longest, line)
			continue
		}
		for _, allowed := range calmWarnings {
			if strings.HasPrefix(line, "level=WARN") && strings.Contains(line, allowed.part) {
				continue lines
			}
		}
		t.Errorf("%s logs (the slowest write beside it took %v): %s", what, longest, line)
	}
}
