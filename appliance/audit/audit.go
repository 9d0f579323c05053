// Package audit judges the programs' command lines and the files that they name by the rules
// of hardening standards.
//
//	results := audit.Run(audit.Input{Args: lines.Args, …}, "cis")
//	err := audit.Text(w, results)
//	ok := audit.Passes(results, audit.LevelAutomated)
//
// The rules are a table (cis.go, nsa.go, stig.go) of tests that read a flag or a file. Run
// asks no process and no API server, so rules about objects in the cluster are left to a
// person. It reads the mode and the owner of files, the audit policy and the names of the
// encryption providers; no secret is in a result.
package audit

import (
	"slices"

	"kthwd/appliance/config"
	"kthwd/appliance/program"
)

// Input is what the rules are about.
type Input struct {
	Config config.Controller
	File   string                   // the configuration file; "" for none
	Args   map[string][]program.Arg // the command lines, by program
}

// Verdict is the outcome of a rule.
type Verdict string

// The verdicts.
const (
	Pass   Verdict = "pass"
	Fail   Verdict = "fail"
	Manual Verdict = "manual" // a person decides; Why says how kthwd decided what it can
	NA     Verdict = "n/a"    // Why says why
)

// The standards.
const (
	CIS  = "cis"  // CIS Kubernetes Benchmark 1.12: control plane (1, 3) and etcd (2)
	NSA  = "nsa"  // NSA and CISA, Kubernetes Hardening Guidance 1.2: the control plane's points
	STIG = "stig" // DISA Kubernetes STIG V2: the control plane's rules
)

// Standards are the standards in their order.
func Standards() []string { return []string{CIS, NSA, STIG} }

// Title returns the full name of a standard.
func Title(standard string) string {
	return map[string]string{
		CIS:  "CIS Kubernetes Benchmark 1.12, control plane and etcd",
		NSA:  "NSA/CISA Kubernetes Hardening Guidance 1.2, control plane",
		STIG: "DISA Kubernetes STIG V2, control plane",
	}[standard]
}

// Result is the verdict on one rule.
type Result struct {
	Standard  string  `json:"standard"`
	ID        string  `json:"id"`
	Title     string  `json:"title"`
	Automated bool    `json:"automated"` // the standard decides it by a command, not by a person
	Verdict   Verdict `json:"verdict"`
	// Equivalent: the rule's words are not met, but its aim is, in another way that Why names.
	Equivalent bool   `json:"equivalent,omitempty"`
	Decides    string `json:"decides,omitempty"` // the flag or file, and its value
	Why        string `json:"why,omitempty"`
	Fix        string `json:"fix,omitempty"` // of a rule that fails
}

// rule is a row of the tables. Without a test the verdict is a person's, or n/a with na.
type rule struct {
	id, title string
	manual    bool // the standard says so
	test      test
	na        bool
	why       string // why kthwd has the value, or what a person must look at
	fix       string // "" means what the test wants
}

// Run judges all rules of the standards, or of all when none is named.
func Run(in Input, standards ...string) (all []Result) {
	for _, s := range Standards() {
		if len(standards) > 0 && !slices.Contains(standards, s) {
			continue
		}
		for _, r := range rules[s] {
			all = append(all, r.judge(s, in))
		}
	}
	return all
}

var rules = map[string][]rule{CIS: cisRules, NSA: nsaRules, STIG: stigRules}

func (r rule) judge(standard string, in Input) Result {
	res := Result{Standard: standard, ID: r.id, Title: r.title, Automated: !r.manual, Verdict: Manual, Why: r.why}
	switch {
	case r.na:
		res.Verdict = NA
	case r.test != nil:
		f := r.test(in)
		res.Verdict, res.Equivalent, res.Decides = f.verdict, f.equivalent, f.decides
		if f.why != "" {
			res.Why = f.why
		}
		if f.verdict == Fail {
			res.Fix = r.fix
			if res.Fix == "" {
				res.Fix = f.fix
			}
		}
	}
	return res
}

// The levels of Passes.
const (
	LevelAutomated = "automated" // no automated rule fails
	LevelAll       = "all"       // no rule fails, the manual ones included
	LevelNone      = "none"      // everything passes: only for a look
)

// Levels are the levels from the strictest to the loosest.
func Levels() []string { return []string{LevelAll, LevelAutomated, LevelNone} }

// Passes reports whether the results reach the level.
func Passes(all []Result, level string) bool {
	return level == LevelNone || !slices.ContainsFunc(all, func(r Result) bool {
		return r.Verdict == Fail && (r.Automated || level == LevelAll)
	})
}
