package fault

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"k8s.io/client-go/kubernetes"

	"kthwd/test/kthwtest"
)

// verb runs a verb of kthwd about the controller and returns its exit code and all it printed.
func verb(t *testing.T, c *kthwtest.Controller, args ...string) (code int, output string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), append(args, "--config=", "--data-dir="+c.Dir)...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("kthwd %s: %v", strings.Join(args, " "), err)
	}
	return cmd.ProcessState.ExitCode(), typed(t, string(out))
}

// typed shortens the commands in an output: they begin with the path of the binary, which is
// not in PATH here.
func typed(t *testing.T, output string) string {
	t.Helper()
	return strings.ReplaceAll(output, kthwtest.Binary(t), "kthwd")
}

// passing is what may change in the list of the members at any time: an election moves the
// leader, and a member that has died is noticed, by whoever leads.
var passing = regexp.MustCompile(`,\s*"(leader|up|seenBy)": (true|false|"[^"]*")`)

// refuses holds that a verb ends with code 1, says all of want, and has changed nothing.
func refuses(t *testing.T, c *kthwtest.Controller, args []string, want ...string) {
	t.Helper()
	_, before := verb(t, c, "member", "list", "-o", "json")
	code, out := verb(t, c, args...)
	if code != 1 {
		t.Errorf("kthwd %s: got exit code %d, want 1:\n%s", strings.Join(args, " "), code, out)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("kthwd %s does not say %q:\n%s", strings.Join(args, " "), w, out)
		}
	}
	if _, after := verb(t, c, "member", "list", "-o", "json"); passing.ReplaceAllString(after, "") != passing.ReplaceAllString(before, "") {
		t.Errorf("kthwd %s, which is refused, changed the members from\n%s\nto\n%s", strings.Join(args, " "), before, after)
	}
}

// lists waits until kthwd member list shows exactly these lines, in this order.
func lists(t *testing.T, c *kthwtest.Controller, want ...string) {
	t.Helper()
	kthwtest.WaitFor(t, "the members "+strings.Join(want, "; "), soon, func() error {
		code, out := verb(t, c, "member", "list")
		var lines []string
		for line := range strings.Lines(out) {
			if fields := strings.Fields(line); strings.HasPrefix(line, "c") && len(fields) > 3 {
				lines = append(lines, fields[0]+" "+fields[2]+" "+strings.Trim(fields[3], ","))
			}
		}
		if got := strings.Join(lines, "; "); code != 0 || got != strings.Join(want, "; ") {
			return fmt.Errorf("got %q:\n%s", got, out)
		}
		return nil
	})
}

// mustRemove removes a member, and returns the output. Members on a slow machine may not agree in time, as the error
// says: the removal is asked for again then, and the first one may have happened all the same.
func mustRemove(t *testing.T, c *kthwtest.Controller, name string) (said string) {
	t.Helper()
	kthwtest.WaitFor(t, "kthwd member remove "+name, soon, func() error {
		code, out := verb(t, c, "member", "remove", name)
		late := strings.Contains(said, "did not agree in time")
		said += out
		switch {
		case code == 0, late && strings.Contains(out, fmt.Sprintf("there is no member %q", name)):
			return nil
		case !strings.Contains(out, "did not agree in time"):
			t.Fatalf("kthwd member remove %s: got exit code %d:\n%s", name, code, said)
		}
		return errors.New(out)
	})
	return said
}

// Controllers leave the cluster for good, the leader too, and what would cost the
// others their quorum is refused. One that comes back is told how.
func memberRemove(t *testing.T, m *made, all *[3]*kthwtest.Controller) {
	lists(t, all[0], "c0 voter up", "c1 voter up", "c2 voter up")
	refuses(t, all[0], []string{"member", "remove", "c0"}, "error: c0 is this controller itself", "hint: run this on another one: c1, c2")
	refuses(t, all[0], []string{"member", "remove", "c7"}, `error: there is no member "c7"`, "hint: members: c0, c1, c2")

	all[2].Signal(t, syscall.SIGKILL)
	all[2].Wait(t, soon)
	lists(t, all[0], "c0 voter up", "c1 voter up", "c2 voter down")
	refuses(t, all[0], []string{"member", "remove", "c1"}, "error: removing c1 would lose the quorum: 1 of the 2 that remain are up (down: c2), and 2 are needed", "hint: bring one of these back first: c2")
	out := mustRemove(t, all[0], "c2")
	for _, want := range []string{"backup  " + all[0].Dir + "/kept/before-member-remove/c0-", "removed  c2", "warning: 2 controllers survive no loss"} {
		if !strings.Contains(out, want) {
			t.Errorf("the removal of the one that is down lacks %q:\n%s", want, out)
		}
	}
	lists(t, all[0], "c0 voter up", "c1 voter up")
	all[2] = m.start(t, 2)
	comesBackInVain(t, all[2])

	// The one that leads, from the other one.
	leader, other := 0, 1
	if r, err := all[0].Status(); err != nil || r.Quorum.Leader != "c0" {
		leader, other = 1, 0
	}
	kthwtest.WaitFor(t, "the warning of one of two", soon, func() error {
		if r, err := all[other].Status(); err != nil || r.Quorum == nil || !strings.Contains(r.Quorum.Warning, "2 controllers survive no loss") {
			return fmt.Errorf("got %+v (%w)", r.Quorum, err)
		}
		return nil
	})
	mustRemove(t, all[other], fmt.Sprintf("c%d", leader))
	lists(t, all[other], fmt.Sprintf("c%d voter up", other))
	comesBackInVain(t, all[leader])
	kthwtest.WaitFor(t, "the last one to write", soon, func() error { return write(t, ownClient(t, all[other]), "alone") })
}

// comesBackInVain holds that a controller that was removed ends, and says what to do.
func comesBackInVain(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	if code := c.Wait(t, soon); code != 1 {
		t.Errorf("a controller that was removed: got exit code %d, want 1", code)
	}
	for _, want := range []string{"was removed from the cluster", "kthwd member add NAME ADDRESS on another controller", "kthwd join"} {
		if !strings.Contains(c.Log.String(), want) {
			t.Errorf("a controller that was removed does not say %q:\n%s", want, c.Log.Tail(20))
		}
	}
}

// ownClient is the administrator's client of one controller, without the balancer.
func ownClient(t *testing.T, c *kthwtest.Controller) kubernetes.Interface {
	t.Helper()
	config := c.RESTConfig(t)
	config.Host = fmt.Sprintf("https://%s:%d", c.Address, c.Ports.Secure)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}
