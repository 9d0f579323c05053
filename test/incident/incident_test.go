package incident

import (
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
	"time"

	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// soon bounds each wait of this package. It decides nothing on a machine that works.
const soon = 3 * time.Minute

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
}

// row is a line of the table that TestMain prints. The surfaces of an incident of which no
// process is left are status and log: the others are not there.
type row struct {
	name                        string
	cause, since, command       bool
	json, bridge, metrics, page bool
	log                         bool
	ended                       bool
}

var (
	tableMu sync.Mutex
	table   []row
)

func TestMain(m *testing.M) {
	kthwtest.TakeTurns(3)
	code := m.Run()
	if os.Getenv("KTHWD_INCIDENTS") != "" {
		printTable()
	}
	os.Exit(code)
}

// printTable prints, for each incident, its three points and the surfaces that tell it.
func printTable() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "INCIDENT\tCAUSE\tSINCE\tCOMMAND\tJSON\tHEALTHZ\tMETRIC\tPAGE\tLOG")
	points := 0
	word := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	slices.SortFunc(table, func(a, b row) int { return number(a.name) - number(b.name) })
	for _, r := range table {
		for _, point := range []bool{r.cause, r.since, r.command} {
			if point {
				points++
			}
		}
		cells := []string{r.name, word(r.cause), word(r.since), word(r.command), "-", "-", "-", "-", word(r.log)}
		if !r.ended {
			copy(cells[4:], []string{word(r.json), word(r.bridge), word(r.metrics), word(r.page)})
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	w.Flush()
	fmt.Printf("%d of %d points\n", points, 3*len(table))
}

// number is the number in the name of an incident: 12 of "C12 …".
func number(name string) (n int) {
	_, _ = fmt.Sscanf(name, "C%d", &n)
	return n
}

// add adds an incident to the table.
func add(r *row) {
	tableMu.Lock()
	defer tableMu.Unlock()
	table = append(table, *r)
}

// ended checks what an operator is told of an incident that has ended the process, or has
// kept it from starting: the error of the start or kthwd status, and the log. since matches
// the time at which it began.
func ended(t *testing.T, want incident, said, log, since string) {
	t.Helper()
	r := row{name: want.name, ended: true}
	defer add(&r)
	r.cause, r.command = strings.Contains(said, want.cause), strings.Contains(said, want.do)
	r.since = since != "" && regexp.MustCompile(since).MatchString(said)
	if r.log = strings.Contains(log, want.cause); !r.cause || !r.command || !r.log || since != "" && !r.since {
		t.Errorf("%s: got %+v, want %q, %q and %q in\n%s\nand in the log\n%s", want.name, r, want.cause, want.do, since, said, log)
	}
}

// look waits for the finding of an incident, checks every surface, and adds the incident to
// the table.
func look(t *testing.T, c *kthwtest.Controller, want incident) status.Finding {
	t.Helper()
	r := row{name: want.name}
	defer add(&r)
	var found status.Finding
	kthwtest.WaitFor(t, "the finding about "+want.name, soon, func() (err error) {
		found, err = find(c, want)
		return err
	})
	r.json, r.since = true, !found.Since.IsZero()
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
	r.bridge = want.bridge == "-" || checks(t, want.name, "the health bridge", c.Ports.Health, c.Address, "/healthz?verbose", want.bridge)
	r.metrics = checks(t, want.name, "the metrics", c.Ports.Metrics, c.Address, "/metrics", `kthwd_findings{health="`+string(found.Health)+`",kind="`+want.kind+`"}`)
	r.page = checks(t, want.name, "the page", c.Ports.Metrics, c.Address, "/", strings.ReplaceAll(want.cause, `"`, "&#34;"))
	said := want.log
	if said == "" {
		said = want.cause
	}
	kthwtest.WaitFor(t, fmt.Sprintf("%s: the log to say %q", want.name, said), soon, func() error {
		if r.log = strings.Contains(strings.ReplaceAll(c.Log.String(), `\`, ""), said); !r.log {
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

// checks reports whether an answer contains text.
func checks(t *testing.T, incident, surface string, port int, address, path, text string) bool {
	t.Helper()
	last := ""
	ok := false
	kthwtest.WaitFor(t, incident+": "+surface+" to say "+text, soon, func() error {
		resp, err := http.Get("http://" + net.JoinHostPort(address, strconv.Itoa(port)) + path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		last = string(body)
		if ok = strings.Contains(last, text); !ok {
			return fmt.Errorf("got %s", last[:min(len(last), 2000)])
		}
		return nil
	})
	return ok
}
