// Package upgradecheck judges whether a controller may be moved to another kthwd now.
//
//	b, err := binary.Inspect(ctx, path)              // the new binary
//	input.Binary, input.BinaryErr = b, err
//	…                                                // what else is known of the cluster
//	results := upgradecheck.Judge(input)
//
// Judge only judges: an Input has all that was found, and for each thing that was not the error
// that says why. What could not be found is never judged as good. Package binary, the methods of
// API, ReadStored and ReadRequests find it, and change nothing.
//
// What the new binary can read from etcd it says itself (see binary.Facts): the old one could only guess.
package upgradecheck

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/agree"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/etcdspace"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
	"kthwd/appliance/upgradecheck/binary"
)

// Verdict is the result of a check.
type Verdict string

// The verdicts. After No the upgrade must wait; after Warn it may begin.
const (
	OK      Verdict = "ok"
	Warn    Verdict = "warn"
	No      Verdict = "no"
	Unknown Verdict = "unknown" // it could not be found out
)

// Result is one line of the table.
type Result struct {
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason"`
	Do      string  `json:"do,omitempty"` // the command that helps; empty when all is well
}

// Input is what is known. A nil pointer goes with an error beside it, or with Down.
type Input struct {
	Now time.Time

	Binary    binary.Binary
	BinaryErr error

	Record    *etcdfiles.Record // of the data directory; nil for none
	RecordErr error

	Report  *status.Report  // of the running kthwd; nil if none answers
	Cluster *status.Cluster // as it sees it; may be nil
	Down    error           // why none answers

	Drift    []agree.Row
	DriftErr error

	Configuration    binary.Configuration
	ConfigurationErr error

	Etcd    *etcdspace.Status
	EtcdErr error

	Stored    *Stored
	StoredErr error

	CRDs    []CRD
	CRDsErr error

	Asked    Asked
	AskedErr error

	Requests    *Requests
	RequestsErr error

	Certificates []status.Certificate

	CopyOff  bool  // --copy-before-upgrade is false
	CopySize int64 // of the copy that the first start of a newer minor makes
	CopyErr  error // why there is no room for it
}

// checks are the checks in the order of the table.
var checks = []struct {
	name  string
	judge func(Input) Result
}{
	{"binary", judgeBinary},
	{"versions", judgeVersions},
	{"controllers", judgeControllers},
	{"health", judgeHealth},
	{"quorum", judgeQuorum},
	{"etcd", judgeEtcd},
	{"configuration", judgeConfiguration},
	{"drift", judgeDrift},
	{"deprecated APIs", judgeDeprecated},
	{"stored objects", judgeStored},
	{"alpha objects", judgeAlpha},
	{"custom resources", judgeCRDs},
	{"certificates", judgeCertificates},
	{"disk", judgeDisk},
	{"backup", judgeBackup},
}

// Checks returns the names of the checks in the order of the table.
func Checks() (names []string) {
	for _, c := range checks {
		names = append(names, c.name)
	}
	return names
}

// Judge returns one result for each check, in a fixed order.
func Judge(in Input) (all []Result) {
	for _, c := range checks {
		r := c.judge(in)
		r.Check = c.name
		all = append(all, r)
	}
	return all
}

// Blocking returns the results because of which the upgrade must wait: those with No, and if
// strict also those with Warn and Unknown.
func Blocking(all []Result, strict bool) (some []Result) {
	for _, r := range all {
		if r.Verdict == No || strict && r.Verdict != OK {
			some = append(some, r)
		}
	}
	return some
}

// WriteTable writes the results for people. paint returns a verdict as it is shown.
func WriteTable(w io.Writer, all []Result, paint func(Verdict) string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CHECK\tVERDICT\tREASON\tWHAT TO DO")
	for _, r := range all {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", r.Check, paint(r.Verdict), text.Line(r.Reason), text.Line(r.Do))
	}
	return t.Flush()
}

func ok(format string, args ...any) Result {
	return Result{Verdict: OK, Reason: fmt.Sprintf(format, args...)}
}
func warn(do, format string, args ...any) Result {
	return Result{Verdict: Warn, Reason: fmt.Sprintf(format, args...), Do: do}
}
func no(do, format string, args ...any) Result {
	return Result{Verdict: No, Reason: fmt.Sprintf(format, args...), Do: do}
}
func unknown(do, format string, args ...any) Result {
	return Result{Verdict: Unknown, Reason: fmt.Sprintf(format, args...), Do: do}
}

// start is the advice where a check needs the running controller.
const start = "start kthwd with the old version, then check again"

// notRunning is the result of a check that needs the running controller.
func (in Input) notRunning(what string) Result {
	return unknown(start, "%s not judged: %s", what, why(in.Down))
}

// noBinary is the result of a check that needs the new binary.
func noBinary(what string) Result {
	return unknown("", "%s not judged: the new binary is not usable", what)
}

// why is an error in one line.
func why(err error) string {
	if err == nil {
		return "kthwd does not run"
	}
	return text.Joined(err.Error())
}

// of is a result for an error with its own advice.
func of(verdict Verdict, err error, otherwise string) Result {
	do, _ := advice.Of(err)
	return Result{Verdict: verdict, Reason: why(err), Do: cmp.Or(do, otherwise)}
}

// shown is how many things of a kind a reason names.
const shown = 4

// list joins the first few of all, and says how many more there are.
func list(all []string) string {
	if more := len(all) - shown; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:shown], ", "), more)
	}
	return strings.Join(all, ", ")
}

// worst returns the worst of some results, with the reasons of all that are as bad.
func worst(all ...Result) Result {
	rank := []Verdict{OK, Unknown, Warn, No}
	r := Result{Verdict: OK}
	for _, a := range all {
		switch d := slices.Index(rank, a.Verdict) - slices.Index(rank, r.Verdict); {
		case d > 0 || r.Reason == "":
			r = a
		case d == 0:
			r.Reason += "; " + a.Reason
			r.Do = cmp.Or(r.Do, a.Do)
		}
	}
	return r
}
