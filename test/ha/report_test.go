package ha

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// result is one line of the table.
type result struct {
	Row           string        `json:"row"`
	Fault         string        `json:"fault"`
	Reach         string        `json:"reach"`
	Measured      string        `json:"measured"`
	Gap           time.Duration `json:"no_write_ns"`       // longest time in which no writer was acknowledged
	OneWriter     time.Duration `json:"one_writer_ns"`     // longest that one impatient writer waited
	PatientWriter time.Duration `json:"patient_writer_ns"` // longest that the patient one waited
	Recovered     time.Duration `json:"ready_again_ns"`    // from the end of the fault until all was ready
	Works         time.Duration `json:"works_again_ns"`    // from the end of the fault until both programs had acted
	Restarts      int           `json:"restarts"`          // of processes
	Writes        int           `json:"writes"`            // acknowledged, and looked for
	Events        int           `json:"events"`            // that each watcher had to see
	Relists       int           `json:"relists"`
	Actions       int           `json:"actions"` // of kube-controller-manager and kube-scheduler
	Notes         []string      `json:"notes"`
	Missed        []string      `json:"missed"`   // what the row promises and did not hold
	Problems      []string      `json:"problems"` // what must not be, whatever the machine is busy with
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func (r *result) verdict() string {
	if len(r.Problems) > 0 {
		return "FAILED"
	}
	if len(r.Missed) > 0 {
		return "missed"
	}
	return "ok"
}

// table prints the results for people.
func table(out io.Writer, results []*result) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "fault\treach\tmeasured\tno write\tone writer\tpatient\tready again\tworks again\trestarts\twrites\tevents\tactions\tverdict\tnotes")
	for _, r := range results {
		if r.Measured == "" {
			fmt.Fprintf(w, "%s\t%s\t%s\n", r.Fault, r.Reach, strings.Join(r.Notes, "; "))
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", r.Fault, r.Reach, r.Measured, seconds(r.Gap), seconds(r.OneWriter),
			seconds(r.PatientWriter), seconds(r.Recovered), seconds(r.Works), r.Restarts, r.Writes, r.Events, r.Actions, r.verdict(), strings.Join(append(r.Missed, r.Notes...), "; "))
	}
	w.Flush()
}

// whatFailed prints once more what must not be, so that the end of a long output
// tells why it ends badly.
func whatFailed(out io.Writer, results []*result) {
	for _, r := range results {
		for _, p := range r.Problems {
			fmt.Fprintf(out, "FAILED %s: %s\n", r.Row, p)
		}
	}
}

// report prints the table and one line of JSON, on standard output and as they
// are, so that scripts can read them.
func report(t *testing.T, results []*result) {
	t.Helper()
	fmt.Println()
	table(os.Stdout, results)
	line, err := json.Marshal(struct {
		Table   string    `json:"table"`
		Results []*result `json:"results"`
	}{"kthwd-ha", results})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\n%s\n\n", line)
}
