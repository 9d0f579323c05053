package incident

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// soon bounds each wait of this package. It decides nothing on a machine that works.
const soon = kthwtest.Soon

// incident is what the surfaces must say.
type incident struct {
	name  string // for the table
	cause string // part of the finding's text
	do    string // part of the finding's remedy
	kind  string // of the finding, and its label in the metrics
	log   string // part of a line of the log; empty: cause
	// bridge is a part of the health bridge's answer; "-" for an incident of which the
	// bridge says nothing, because every component works.
	bridge string
	alert  string // the one that fires; empty: that of the kind
}

// names are the incidents of the table. One that is skipped has no points.
var names = []string{
	"C1 webhook refuses everything",
	"C2 ca.pem replaced",
	"C3 etcd has no space",
	"C4 no space on the data disk",
	"C5 slow disk",
	"C6 another encryption key",
	"C7 token key pair replaced",
	"C7 a client with an old token",
	"C8 killed by the memory limit",
	"C9 broken APIService",
	"C10 bootstrap roles deleted",
	"C11 port taken",
	"C12 too few open files",
	"C13 kubernetes.pem expires in 5 days",
	"C14 nothing runs",
	"C15 kubernetes.pem has expired",
	"C16 webhook denies the leases",
}

// alerts are the shipped alerts that fire because of an incident, by the kind of its finding.
// TestAlertsAreShipped holds them to the rules.
var alerts = map[string]string{
	"apiservice":         "KthwdAPIServiceUnavailable",
	"bootstrap_restored": "KthwdBootstrapRestored",
	"certificate":        "KthwdCertificateExpiresSoon",
	"decryption":         alertDegraded,
	"disk_full":          "KthwdDiskFull",
	"etcd_space":         "KthwdEtcdAlarm",
	"file_misfit":        "KthwdFilesChanged",
	"fsync":              "KthwdFsyncSlow",
	"keys_replaced":      alertDegraded,
	"last_run":           "KthwdRunEndedBadly",
	"tokens_refused":     "KthwdTokensRefused",
	"webhook":            "KthwdWebhookFails",
}

const (
	alertDegraded = "KthwdDegraded" // of the kinds that no other alert is about
	alertDown     = "KthwdDown"     // of an incident of which no process is left
	alertNotReady = "KthwdComponentNotReady"
)

// A row is a line of the table that TestMain prints.
type row struct {
	name                  string
	cause, since, command bool
	json, metrics, page   surface
	bridge, log           surface
	alert                 string
}

// points are those of one incident, of three.
func (r row) points() (n int) {
	for _, point := range []bool{r.cause, r.since, r.command} {
		if point {
			n++
		}
	}
	return n
}

// surface says whether a place tells the incident. The zero value is one that does not.
type surface string

const (
	tells  surface = "yes"
	silent surface = "no"
	absent surface = "-" // there is no such place: the process has ended, or the bridge has nothing to say
)

func told(ok bool) surface {
	if ok {
		return tells
	}
	return silent
}

var (
	tableMu sync.Mutex
	table   []row
)

func TestMain(m *testing.M) {
	kthwtest.TakeTurns(3)
	code := m.Run()
	if os.Getenv("KTHWD_INCIDENTS") != "" {
		rows := allRows(table)
		printTable(os.Stdout, rows)
		if os.Geteuid() == 0 && !enough(rows) && code == 0 {
			code = 1
		}
	}
	os.Exit(code)
}

// allRows are the rows of all names, in order, with one without points for each that is missing.
func allRows(seen []row) (all []row) {
	for _, name := range names {
		r := row{name: name}
		if i := slices.IndexFunc(seen, func(s row) bool { return s.name == name }); i >= 0 {
			r = seen[i]
		}
		all = append(all, r)
	}
	return all
}

// enough reports whether 45 of 48 points are reached, or as large a share of more.
func enough(rows []row) bool {
	points := 0
	for _, r := range rows {
		points += r.points()
	}
	return 48*points >= 45*3*len(rows)
}

// printTable prints, for each incident, its three points and the surfaces that tell it.
func printTable(to io.Writer, rows []row) {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "INCIDENT\tCAUSE\tSINCE\tCOMMAND\tJSON\tHEALTHZ\tMETRIC\tPAGE\tLOG\tALERT")
	points := 0
	for _, r := range rows {
		points += r.points()
		cells := []string{r.name}
		for _, s := range []surface{told(r.cause), told(r.since), told(r.command), r.json, r.bridge, r.metrics, r.page, r.log} {
			cells = append(cells, cmp.Or(string(s), string(silent)))
		}
		fmt.Fprintln(w, strings.Join(append(cells, cmp.Or(r.alert, "no")), "\t"))
	}
	w.Flush()
	fmt.Fprintf(to, "%d of %d points\n", points, 3*len(rows))
}

// add adds an incident to the table.
func add(t *testing.T, r *row) {
	t.Helper()
	if !slices.Contains(names, r.name) {
		t.Errorf("%s is not among the incidents of the table", r.name)
	}
	tableMu.Lock()
	defer tableMu.Unlock()
	table = append(table, *r)
}

// ended checks what an operator is told of an incident that has ended the process, or has
// kept it from starting: the error of the start or kthwd status, and the log. since matches
// the time at which it began.
func ended(t *testing.T, want incident, said, log, since string) {
	t.Helper()
	r := row{name: want.name, json: absent, bridge: absent, metrics: absent, page: absent, alert: alertDown}
	defer add(t, &r)
	r.cause, r.command = strings.Contains(said, want.cause), strings.Contains(said, want.do)
	r.since = since != "" && regexp.MustCompile(since).MatchString(said)
	if r.log = told(strings.Contains(log, want.cause)); !r.cause || !r.command || r.log != tells || since != "" && !r.since {
		t.Errorf("%s: got %+v, want %q, %q and %q in\n%s\nand in the log\n%s", want.name, r, want.cause, want.do, since, said, log)
	}
}

// look waits for the finding of an incident, checks every surface, and adds the incident to
// the table.
func look(t *testing.T, c *kthwtest.Controller, want incident) status.Finding {
	t.Helper()
	r := row{name: want.name, alert: cmp.Or(want.alert, alerts[want.kind])}
	defer add(t, &r)
	if r.alert == "" {
		t.Errorf("%s: no alert is about the kind %s", want.name, want.kind)
	}
	var found status.Finding
	kthwtest.WaitFor(t, "the finding about "+want.name, soon, func() (err error) {
		found, err = find(c, want)
		return err
	})
	r.json, r.since = tells, !found.Since.IsZero()
	if !r.since {
		t.Errorf("%s: the finding does not say since when: %+v", want.name, found)
	}
	kthwtest.WaitFor(t, fmt.Sprintf("%s: kthwd status to say %q and %q", want.name, want.cause, want.do), soon, func() error {
		text := statusText(t, c)
		r.cause, r.command = strings.Contains(text, want.cause), strings.Contains(text, want.do)
		if !r.cause || !r.command {
			return fmt.Errorf("it says\n%s", text)
		}
		return nil
	})
	r.bridge = absent
	if want.bridge != "-" {
		r.bridge = checks(t, want.name, "the health bridge", c.Ports.Health, c.Address, "/healthz?verbose", want.bridge)
	}
	r.metrics = checks(t, want.name, "the metrics", c.Ports.Metrics, c.Address, "/metrics", `kthwd_findings{health="`+string(found.Health)+`",kind="`+want.kind+`"}`)
	r.page = checks(t, want.name, "the page", c.Ports.Metrics, c.Address, "/", strings.ReplaceAll(want.cause, `"`, "&#34;"))
	said := want.log
	if said == "" {
		said = want.cause
	}
	kthwtest.WaitFor(t, fmt.Sprintf("%s: the log to say %q", want.name, said), soon, func() error {
		if r.log = told(strings.Contains(strings.ReplaceAll(c.Log.String(), `\`, ""), said)); r.log != tells {
			return errors.New(c.Log.Tail(40))
		}
		return nil
	})
	return found
}

// find returns the finding with the wanted cause and command.
func find(c *kthwtest.Controller, want incident) (status.Finding, error) {
	r, err := c.Status()
	if err != nil {
		return status.Finding{}, err
	}
	for _, f := range r.Findings {
		if f.Kind == want.kind && strings.Contains(f.Text, want.cause) && strings.Contains(f.Do, want.do) {
			return f, nil
		}
	}
	return status.Finding{}, fmt.Errorf("got %+v", r.Findings)
}

// healthy waits until no finding of the kind is left and every component works.
func healthy(t *testing.T, c *kthwtest.Controller, kind string) {
	t.Helper()
	kthwtest.WaitFor(t, "a healthy controller", soon, func() error {
		r, err := c.Status()
		if err != nil {
			return err
		}
		if !r.Ready {
			return fmt.Errorf("not ready: %s", r.Reason)
		}
		for _, f := range r.Findings {
			if f.Kind == kind {
				return fmt.Errorf("still there: %+v", f)
			}
		}
		return nil
	})
}

// statusText is what kthwd status prints.
func statusText(t *testing.T, c *kthwtest.Controller) string {
	t.Helper()
	out, _ := exec.Command(kthwtest.Binary(t), "status", "--config=", "--data-dir="+c.Dir).CombinedOutput() // its exit code is the health
	return string(out)
}

// checks waits until an answer contains text.
func checks(t *testing.T, incident, place string, port int, address, path, text string) surface {
	t.Helper()
	kthwtest.WaitFor(t, incident+": "+place+" to say "+text, soon, func() error {
		resp, err := http.Get("http://" + net.JoinHostPort(address, strconv.Itoa(port)) + path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if !strings.Contains(string(body), text) {
			return fmt.Errorf("got %s", body[:min(len(body), 2000)])
		}
		return nil
	})
	return tells // or the wait has ended the test, and the row has what it had
}
