package clusterwatch

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/status"
	"kthwd/rbacseed"
)

func TestRestoredFinding(t *testing.T) {
	begin := time.Date(2026, 1, 2, 2, 9, 0, 0, time.UTC)
	admin := rbacseed.Change{Object: "clusterrole cluster-admin", Action: rbacseed.Created}
	for _, tt := range []struct {
		name    string
		changes []rbacseed.Change
		after   time.Duration // since the last change
		health  status.Health // "" for no finding
		text    string
	}{
		{"nothing", nil, 0, "", ""},
		{"deleted", []rbacseed.Change{admin}, 0, status.Healthy, "clusterrole cluster-admin was deleted, and was made again"},
		{"changed", []rbacseed.Change{{Object: "clusterrole view", Action: rbacseed.Updated}}, 0, status.Healthy, "clusterrole view had lost something, and has it again"},
		{"two", []rbacseed.Change{{Object: "clusterrole view", Action: rbacseed.Updated}, admin}, 0, status.Healthy,
			"clusterrole cluster-admin and clusterrole view were deleted or changed, and were made again"},
		{"again and again", []rbacseed.Change{admin, admin, admin}, 0, status.Degraded,
			"clusterrole cluster-admin was deleted, and was made again, 3 times so far: something works against it"},
		{"five", []rbacseed.Change{{Object: "a", Action: rbacseed.Created}, {Object: "b", Action: rbacseed.Created}, {Object: "c", Action: rbacseed.Created},
			{Object: "d", Action: rbacseed.Created}, {Object: "e", Action: rbacseed.Created}}, 0, status.Healthy,
			"a, b, c and 2 more were deleted or changed, and were made again"},
		{"over", []rbacseed.Change{admin}, restoredShown + time.Second, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := New(Config{AuditLog: "/var/log/audit.log"})
			now := begin
			for i, c := range tt.changes {
				now = begin.Add(time.Duration(i) * time.Second)
				w.roles.say(c, now)
			}
			all := w.roles.findings(now.Add(tt.after))
			switch {
			case tt.health == "" && len(all) == 0:
			case tt.health == "" || len(all) != 1:
				t.Errorf("findings = %+v; want health %q", all, tt.health)
			case all[0].Health != tt.health || all[0].Text != tt.text || all[0].Kind != kindRestored || !all[0].Since.Equal(begin):
				t.Errorf("findings = %+v; want %s %q since %v", all, tt.health, tt.text, begin)
			}
		})
	}
}

// The advice finds the line of the user that deleted the object, alone or with all others of its kind.
func TestRestoredCommand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's $HOME")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "audit.log")
	lines := `{"kind":"Event","verb":"get","user":{"username":"x"},"objectRef":{"resource":"clusterroles","name":"cluster-admin"}}
{"kind":"Event","verb":"delete","user":{"username":"eve"},"objectRef":{"resource":"clusterroles","name":"cluster-admin"}}
{"kind":"Event","verb":"delete","user":{"username":"y"},"objectRef":{"resource":"clusterroles","name":"other"}}
{"kind":"Event","verb":"deletecollection","user":{"username":"mallory"},"objectRef":{"resource":"priorityclasses","apiGroup":"scheduling.k8s.io"}}
{"kind":"Event","verb":"deletecollection","user":{"username":"z"},"objectRef":{"resource":"events","namespace":"default"}}
`
	if err := os.WriteFile(log, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	for object, who := range map[string]string{"clusterrole cluster-admin": "eve", "priorityclass system-node-critical": "mallory"} {
		w := New(Config{AuditLog: log})
		w.roles.say(rbacseed.Change{Object: object, Action: rbacseed.Created}, time.Now())
		out, err := exec.Command("sh", "-c", w.Findings()[0].Do).Output()
		if err != nil || !strings.Contains(string(out), who) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s: %v, %q", w.Findings()[0].Do, err, out)
		}
	}
}

func TestResourceOf(t *testing.T) {
	for object, want := range map[string]string{
		"clusterrole view": "clusterroles", "rolebinding kube-system/x": "rolebindings", "priorityclass system-node-critical": "priorityclasses", "apiservice v1.apps": "apiservices",
	} {
		if got := resourceOf(object); got != want {
			t.Errorf("resourceOf(%q) = %q, want %q", object, got, want)
		}
	}
}

func TestPauseAfter(t *testing.T) {
	for times, want := range map[int]time.Duration{0: time.Second, 1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 6: 30 * time.Second, 1000: 30 * time.Second} {
		if got := pauseAfter(times); got != want {
			t.Errorf("pauseAfter(%d) = %v; want %v", times, got, want)
		}
	}
}
