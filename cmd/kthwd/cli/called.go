package cli

import (
	"os"
	"os/exec"
	"regexp"
	"strings"

	"kthwd/appliance/logging"
	"kthwd/appliance/text"
)

// CalledAs returns the word with which a person runs this program here: kthwd if the shell
// finds it, otherwise the word of this command line.
func CalledAs(word string) string {
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
func (a *App) ownCommand() *regexp.Regexp {
	a.commandOnce.Do(func() {
		verbs := []string{"--role"}
		if a.Verbs != nil {
			for _, name := range a.Verbs() {
				verbs = append(verbs, regexp.QuoteMeta(name))
			}
		}
		a.command = regexp.MustCompile("(?:^|[ `(])(kthwd) (?:" + strings.Join(verbs, "|") + `)\b`)
	})
	return a.command
}

// NewLogs makes the log of a process. Its hints name commands as they are typed here.
func (a *App) NewLogs(format string, levels []string) (*logging.Logs, error) {
	logs, err := logging.New(a.Err, a.LogFormat(format), levels)
	if err == nil {
		logs.SpellHints(a.AsTyped)
	}
	return logs, err
}

// elsewhere begins what is said of a command for another machine, where the program has the
// name that packages give it.
var elsewhere = regexp.MustCompile(`^[^;:]*\b(?:on (?:another|each|every|all|the other|these|those|a) |there\b)`)

// AsTyped returns advice in which the commands of kthwd for this machine begin with the word
// with which it was called.
func (a *App) AsTyped(advice string) string {
	if a.Called == "" || a.Called == "kthwd" || !strings.Contains(advice, "kthwd ") {
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
			typed.WriteString(a.Called)
		}
		advice = advice[end:]
	}
}

// LogFormat replaces text by the variant for a terminal or the journal, if standard error is one.
func (a *App) LogFormat(format string) string {
	switch {
	case format == logging.Text && IsJournal(a.Err):
		return logging.Journal
	case format != logging.Text || !IsTerminal(a.Err):
		return format
	case Colours(a.Err):
		return logging.Terminal
	default:
		return logging.Plain
	}
}
