package observe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"kthwd/appliance/logging"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/lb"
	"kthwd/test/kthwtest"
)

// folds are the screens whose first view has what matters most.
var folds = []struct {
	name          string
	width, height int64
}{{"wide", 1280, 720}, {"phone", 390, 844}}

const (
	longReason = "/readyz says 500: [+]ping ok [+]log ok [-]etcd failed: reason withheld [+]poststarthook/start-apiextensions-controllers ok"
	command    = `kubectl patch validatingwebhookconfiguration no --type=json -p='[{"op": "remove", "path": "/webhooks/0"}]'`
)

// controllerInTrouble is a report with several problems.
func controllerInTrouble() status.Report {
	now := time.Now()
	r := status.Report{
		Version: "v0.1.0", Kubernetes: "v1.36.3", Etcd: "3.6.16", PID: 1, Name: "controller-1.example.internal", Started: now.Add(-30 * time.Hour),
		Reason:       "kube-controller-manager: begins again after: lease lost",
		Quorum:       &status.Quorum{Members: 3, Needed: 2, Active: 2, Leader: "controller-0"},
		Member:       &status.Member{Name: "controller-1", Members: []status.MemberInfo{{Name: "controller-0", Leader: true, Active: true}, {Name: "controller-1", Local: true, Active: true}, {Name: "controller-2"}}},
		Dependencies: map[string][]string{"etcd": {"status"}, "kube-apiserver": {"etcd"}, "kube-controller-manager": {"kube-apiserver"}, "kube-scheduler": {"kube-apiserver"}},
		Certificates: []status.Certificate{{File: "/var/lib/kubernetes/ca.pem", NotAfter: now.Add(9000 * time.Hour)}, {File: "/var/lib/kubernetes/kubernetes.pem", Subject: "kubernetes", NotAfter: now.Add(90 * time.Hour)}},
		Observed:     []status.Finding{{Health: status.Down, Text: "kube-controller-manager: the webhook no.example.com refuses serviceaccounts/token", Do: command, Since: now.Add(-7 * time.Minute)}},
	}
	for _, name := range []string{"status", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		r.Components = append(r.Components, supervise.Status{Name: name, State: supervise.Ready, Since: r.Started})
	}
	r.Components[3].State, r.Components[3].LastError, r.Components[3].Restarts = supervise.Starting, "lease lost", 4
	return r
}

// balancerInTrouble has backends with long reasons.
func balancerInTrouble() status.Report {
	now := time.Now()
	return status.Report{
		Version: "v0.1.0", PID: 1, Name: "edge-1.example.internal", Started: now.Add(-30 * time.Hour), Ready: true,
		Components: []supervise.Status{{Name: "status", State: supervise.Ready, Since: now}, {Name: "lb", State: supervise.Ready, Since: now}},
		LB: &lb.Status{
			Ready: true, Check: "https /readyz", Listen: []lb.ListenerStatus{{Address: "0.0.0.0:6443", Active: 12, Accepted: 48211}},
			Backends: []lb.BackendStatus{
				{Address: "controller-0.example.internal:6443", State: "ready", Since: now.Add(-time.Hour), LastCheck: "ok", Active: 12, Total: 24011},
				{Address: "controller-1.example.internal:6443", State: "not_ready", Since: now.Add(-time.Minute), LastCheck: "not_ready", Reason: longReason, Errors: 7, Total: 24011},
			},
		},
	}
}

// otherControllers are a healthy one and one that does not answer.
func otherControllers() []status.Controller {
	now := time.Now()
	return []status.Controller{
		{Name: "controller-0", Version: "v0.1.0", Health: status.Healthy, Ready: true, Leader: "controller-0", Since: now.Add(-time.Hour), Answered: now},
		{Name: "controller-2", Version: "v0.1.0", Health: status.Healthy, Ready: true, Leader: "controller-0", Answered: now.Add(-time.Hour), Error: "connection refused", ErrorSince: now.Add(-59 * time.Minute)},
	}
}

// serveReport serves the page of a report on a loopback port.
func serveReport(t *testing.T, report status.Report, others func() []status.Controller) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	logs, err := logging.New(io.Discard, logging.Text, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := status.NewServer(status.ServerConfig{Address: address, Logs: logs, Report: func() status.Report { return report }, Others: others})
	ready, ended := make(chan struct{}), make(chan error, 1)
	ctx := t.Context()
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(address)
	return port
}

// bottomOf is the script for the lower edge of the first element that a selector finds.
func bottomOf(selector string) string {
	return fmt.Sprintf(`Math.round(document.querySelector(%q).getBoundingClientRect().bottom)`, selector)
}

// TestAboveTheFold opens the pages of processes in trouble: the verdict, the quorum, the
// certificates and the first command are in the first view, and no page is wider than the
// screen, with all of a backend's reason.
func TestAboveTheFold(t *testing.T) {
	needE2E(t)
	t.Parallel()
	tab := browser(t)
	controller, balancer := serveReport(t, controllerInTrouble(), otherControllers), serveReport(t, balancerInTrouble(), nil)
	for _, s := range folds {
		do(t, tab, s.name, chromedp.EmulateViewport(s.width, s.height), chromedp.Navigate("http://127.0.0.1:"+controller+"/"), chromedp.WaitVisible("#main"))
		for _, selector := range []string{".verdict", ".facts div:nth-child(1)", ".facts div:nth-child(2)", ".facts div:nth-child(3)", ".findings .command .copy"} {
			if bottom := get(t, tab, selector, chromedp.Evaluate[int64](bottomOf(selector))); bottom <= 0 || bottom > s.height {
				t.Errorf("%s: the lower edge of %s is at %d, not in the first view of %d", s.name, selector, bottom, s.height)
			}
		}
		first := get(t, tab, "the first finding", chromedp.Evaluate[string](`document.querySelector(".findings li").textContent`))
		if !strings.Contains(first, "down") || !strings.Contains(first, command) || !strings.Contains(first, "since 7m") {
			t.Errorf("%s: the first finding is not the worst, with its age: %s", s.name, first)
		}
		lost := get(t, tab, "the green boxes", chromedp.Evaluate[string](
			`Array.from(document.querySelectorAll(".picture .tone-good .name")).map(e => e.textContent).join(" ")`))
		if strings.Contains(lost, "kube-controller-manager") {
			t.Errorf("%s: green, though a finding is about it: %s", s.name, lost)
		}
		picture(t, tab, "fold-controller-"+s.name)

		do(t, tab, s.name, chromedp.Navigate("http://127.0.0.1:"+balancer+"/"), chromedp.WaitVisible("#backends"))
		if title := get(t, tab, "the title", chromedp.Title()); !strings.Contains(title, "edge-1.example.internal") {
			t.Errorf("%s: the title lacks the name of the host: %s", s.name, title)
		}
		overflow := get(t, tab, "the width", chromedp.Evaluate[int](`Math.max(0, ...Array.from(document.querySelectorAll("#backends td, #backends th")).filter(e => e.offsetParent !== null && e.closest("thead") === null).map(e => Math.ceil(e.getBoundingClientRect().right) - window.innerWidth))`))
		if overflow > 0 {
			t.Errorf("%s: a cell of a backend is %d pixels beyond the edge", s.name, overflow)
		}
		reason := get(t, tab, "the reason", chromedp.Evaluate[string](`(Array.from(document.querySelectorAll("#backends td")).find(e => e.dataset.column === "Reason" && e.textContent && e.getBoundingClientRect().width > 0) || {textContent: ""}).textContent`))
		if reason != longReason {
			t.Errorf("%s: got the reason %q", s.name, reason)
		}
		picture(t, tab, "fold-lb-"+s.name)
	}
}

// TestCopy copies a command with the keyboard: over plain HTTP, where a page has no
// clipboard, and where even the old way is refused and the command stays selected. The
// page goes on polling meanwhile, and keeps the focus.
func TestCopy(t *testing.T) {
	needE2E(t)
	t.Parallel()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	tab := browser(t, chromedp.Flag("host-resolver-rules", "MAP "+host+" 127.0.0.1"))
	port := serveReport(t, controllerInTrouble(), nil)
	eval := func(what, script string) string {
		t.Helper()
		return get(t, tab, what, chromedp.Evaluate[string](script))
	}
	await := func(what, script, want string) {
		t.Helper()
		kthwtest.WaitFor(t, what, kthwtest.Soon, func() error {
			if got := eval(what, script); got != want {
				return errors.New(got)
			}
			return nil
		})
	}
	const label = `document.querySelector(".copy").firstChild.data`
	open := func(host string) {
		t.Helper()
		do(t, tab, "open the page", chromedp.Navigate("http://"+host+":"+port+"/"), chromedp.WaitVisible("#main"))
		eval("note what is copied", `document.addEventListener("copy", () => { window.copied = document.getSelection().toString() }); ""`)
		eval("focus the button", `document.querySelector(".copy").focus(); ""`)
		if focused := eval("the focus", `document.activeElement.className`); focused != "copy" {
			t.Fatalf("the focus is on %q", focused)
		}
	}
	open(strings.ToLower(host))
	if secure := get(t, tab, "the context", chromedp.Evaluate[bool](`window.isSecureContext`)); secure {
		t.Fatal("the page has a clipboard: this tests nothing")
	}
	do(t, tab, "press Enter", chromedp.KeyEvent("\r"))
	await("the label", label, "Copied")
	if got := eval("what was copied", `window.copied || "nothing"`); got != command {
		t.Errorf("copied %q, want %q", got, command)
	}
	await("what a screen reader says", `document.getElementById("said").textContent`, "Copied")
	await("the label again", label, "Copy")
	at := eval("the time", `document.getElementById("at").textContent`)
	kthwtest.WaitFor(t, "the page's next update", kthwtest.Soon, func() error {
		if now := eval("the time", `document.getElementById("at").textContent`); now == at {
			return errors.New(now)
		}
		return nil
	})
	if focused := eval("the focus", `document.activeElement.className`); focused != "copy" {
		t.Errorf("after an update the focus is on %q", focused)
	}

	open(strings.ToLower(host))
	eval("refuse the old way", `document.execCommand = () => false; ""`)
	do(t, tab, "press space", chromedp.KeyEvent(" "))
	await("the label", label, "Selected: press Ctrl+C")
	if got := eval("the selection", `document.getSelection().toString()`); got != command {
		t.Errorf("selected %q, want %q", got, command)
	}
}

// picture writes a screenshot to the directory in KTHWD_PICTURES, for a person to look at.
func picture(t *testing.T, tab context.Context, name string) {
	t.Helper()
	dir := os.Getenv("KTHWD_PICTURES")
	if dir == "" {
		return
	}
	shot := get(t, tab, "the picture", chromedp.CaptureScreenshot())
	if err := os.WriteFile(filepath.Join(dir, name+".png"), shot, 0o644); err != nil {
		t.Fatal(err)
	}
}
