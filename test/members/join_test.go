package members

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/member"
	"kthwd/test/lbtest"
)

// join runs kthwd join on the machine.
func (m *machine) join(token string) (output string, err error) {
	var out []byte
	m.host.Do(func() {
		self, e := os.Executable()
		if err = e; err != nil {
			return
		}
		cmd := exec.Command(self, m.dir, token)
		cmd.Env = append(os.Environ(), lbtest.HelperEnv("join"))
		out, err = cmd.CombinedOutput()
	})
	return string(out), err
}

// TestJoinNeedsAllPaths: a machine becomes a member only if each controller reaches it, and
// it reaches each controller. The refusal names the one that does not, and the token
// remains valid.
func TestJoinNeedsAllPaths(t *testing.T) {
	if !requireNetwork(t) {
		return
	}
	c := newCluster(t, 3)
	c0, c1, c2 := c.machines[0], c.machines[1], c.machines[2]
	start(t, c.machines...)
	c.whole(t)
	c3 := c.newMachine(t, 3)
	if err := os.Mkdir(c3.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var added member.Added
	in := member.AddRequest{Name: c3.name, Address: c3.address, TTL: time.Hour}
	if err := c0.client().Do(t.Context(), http.MethodPost, "/members", in, &added); err != nil {
		t.Fatal(err)
	}
	for _, cut := range []struct {
		at, from *machine
		want     string
	}{
		{c3, c0, "c0 cannot reach the new controller's peer port: "},
		{c3, c1, "c1 cannot reach the new controller's peer port: "},
		{c3, c2, "c2 cannot reach the new controller's peer port: "},
		{c0, c3, "this machine cannot reach the etcd peer port of c0: "},
		{c2, c3, "this machine cannot reach the etcd peer port of c2: "},
	} {
		shut(t, cut.at, cut.from)
		output, err := c3.join(added.Token)
		open(t, cut.at, cut.from)
		if err == nil || !strings.Contains(output, cut.want) || !strings.Contains(output, "connection refused") ||
			!strings.Contains(output, "hint: open that port there") || strings.Count(output, "cannot reach") != 1 {
			t.Errorf("%s does not reach %s: got %v:\n%s\nwant %q", cut.from.name, cut.at.name, err, output, cut.want)
		}
	}
	c0.lists(t, "c0 up, c1 up, c2 up, c3 down") // c3 is joining, and no member

	output, err := c3.join(added.Token)
	if err != nil {
		t.Fatalf("with all paths: %v:\n%s", err, output)
	}
	start(t, c3)
	c0.lists(t, "c0 up, c1 up, c2 up, c3 up")
}
