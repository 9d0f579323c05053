package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"

	"kthwd/appliance/logging"
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

// ownCommand finds a command of kthwd in advice.
func (a *app) ownCommand() *regexp.Regexp {
	a.commandOnce.Do(func() {
		verbs := []string{"--role"}
		for _, verb := range (&app{}).newRoot().Commands() {
			verbs = append(verbs, regexp.QuoteMeta(verb.Name()))
		}
		a.command = regexp.MustCompile("(?:^|[ `(])(kthwd) (?:" + strings.Join(verbs, "|") + `)\b`)
	})
	return a.command
}

// newLogs makes the log of a process. Its hints name commands as they are typed here.
func (a *app) newLogs(format string, levels []string) (*logging.Logs, error) {
	logs, err := logging.New(a.err, a.logFormat(format), levels)
	if err == nil {
		logs.SpellHints(a.asTyped)
	}
	return logs, err
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
	command := a.ownCommand()
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
