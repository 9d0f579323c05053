package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"

	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

// calledAs returns the word with which a person runs this program here: kthwd if the shell
// finds it, otherwise the word of this command line.
func calledAs(word string) string {
	const name = "kthwd"
	own, err := os.Executable()
	if err != nil || word == "" {
		return name
	}
	found, err := exec.LookPath(name)
	if err == nil && sameFile(found, own) {
		return name
	}
	return text.ShellWord(word)
}

func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// elsewhere begins what is said of a command for another machine, where the program has the
// name that packages give it.
var elsewhere = regexp.MustCompile(`^[^;:]*\b(?:on (?:another|each|every|all|the other|these|those|a) |there\b)`)

// asTyped returns advice in which the commands of kthwd for this machine begin with the word
// with which it was called.
func (a *app) asTyped(advice string) string {
	if a.called == "" || a.called == "kthwd" || !strings.Contains(advice, "kthwd ") {
		return advice
	}
	verbs := []string{"--role"}
	for _, verb := range a.newRoot().Commands() {
		verbs = append(verbs, verb.Name())
	}
	command := regexp.MustCompile("(?:^|[ `(])(kthwd) (?:" + strings.Join(verbs, "|") + `)\b`)
	var typed strings.Builder
	for {
		at := command.FindStringSubmatchIndex(advice)
		if at == nil {
			return typed.String() + advice
		}
		begin, end := at[2], at[3]
		typed.WriteString(advice[:begin])
		if elsewhere.MatchString(advice[end:]) {
			typed.WriteString("kthwd")
		} else {
			typed.WriteString(a.called)
		}
		advice = advice[end:]
	}
}

// asTypedAll is asTyped for what a report tells to do.
func (a *app) asTypedAll(r status.Report) status.Report {
	findings := make([]status.Finding, len(r.Findings))
	for i, f := range r.Findings {
		f.Do = a.asTyped(f.Do)
		findings[i] = f
	}
	r.Findings = findings
	return r
}
