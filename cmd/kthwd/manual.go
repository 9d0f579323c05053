package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kthwd/appliance/config"
	"kthwd/cmd/kthwd/cli"
)

// manual generates the manual pages, section 1, from the commands: kthwd.1,
// kthwd-status.1, … Their date is SOURCE_DATE_EPOCH's, or today's.
func manual(root *cobra.Command) map[string][]byte {
	pages := map[string][]byte{}
	var add func(cmd *cobra.Command)
	add = func(cmd *cobra.Command) {
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
		pages[name+".1"] = []byte(manualPage(cmd, name))
		for _, c := range cmd.Commands() {
			if !c.Hidden {
				add(c)
			}
		}
	}
	add(root)
	return pages
}

func manualPage(cmd *cobra.Command, name string) string {
	p := &roff{}
	fmt.Fprintf(p, ".TH %q 1 %q %q \"kthwd manual\"\n", strings.ToUpper(name), buildDate().Format("2006-01-02"), "kthwd "+cli.Version)
	p.section("NAME")
	p.text(name + ` \- ` + escape(strings.TrimSuffix(lowerFirst(strings.TrimPrefix(cmd.Short, "kthwd ")), ".")))
	p.section("SYNOPSIS")
	if cmd.HasParent() {
		p.line(".B " + escape(cmd.UseLine()))
	} else {
		p.line(".B kthwd \\-\\-role=controller \\fR[\\fIflags\\fR]\n.br\n.B kthwd \\-\\-role=lb \\-\\-backend=\\fIHOST:PORT\\fB... \\fR[\\fIflags\\fR]\n.br\n.B kthwd \\fIVERB\\fR [\\fIflags\\fR]")
	}
	p.section("DESCRIPTION")
	long := cmd.Long
	if long == "" {
		long = cmd.Short
	}
	p.paragraphs(long)
	p.verbs(cmd)
	p.options(cmd)
	if cmd.Example != "" {
		p.section("EXAMPLES")
		p.line(".nf\n" + escape(cmd.Example) + "\n.fi")
	}
	if !cmd.HasParent() {
		for _, s := range rootSections {
			p.section(s.title)
			for _, item := range s.items {
				p.item(item.what, item.text)
			}
		}
	}
	p.section("SEE ALSO")
	p.seeAlso(cmd)
	return p.String()
}

// rootSections are the sections of kthwd.1 that the commands do not provide.
var rootSections = []struct {
	title string
	items []struct{ what, text string }
}{
	{"SIGNALS", []struct{ what, text string }{
		{"SIGTERM, SIGINT", "Stop in order; a second signal ends the process at once."},
		{"SIGHUP", "The load balancer reads its configuration again. A controller ignores it."},
		{"SIGUSR1", "The load balancer turns its debug lines on or off."},
		{"SIGUSR2", "The load balancer starts the binary again and hands its listeners and connections over to the new process."},
	}},
	{"EXIT STATUS", []struct{ what, text string }{
		{"0", "Asked to stop, or done."},
		{"1", "Failed; the reason is on standard error."},
		{"2", "Wrong usage or configuration; trying again does not help."},
	}},
	{"ENVIRONMENT", []struct{ what, text string }{
		{"GOMEMLIMIT, GOGC", "Set the garbage collector; without them the memory limit is nine tenths of the control group's, if it has one."},
		{"NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS, JOURNAL_STREAM", "Set by systemd for readiness and state, the watchdog, sockets, and levels in the journal."},
		{"NO_COLOR", "Turns colours on a terminal off."},
	}},
	{"FILES", []struct{ what, text string }{
		{config.DefaultFile, "Read if it exists and there is no --config."},
		{"/etc/kthwd/controller.yaml, /etc/kthwd/lb.yaml", "Configuration of the units kthwd-controller and kthwd-lb."},
		{"/etc/default/kthwd", "Environment and further flags of both units."},
		{"/var/lib/kubernetes", "Certificates, keys, kubeconfigs and etcd's data; back it up."},
	}},
}

// buildDate is SOURCE_DATE_EPOCH if it is set, so that the same sources give the same
// pages.
func buildDate() time.Time {
	if n, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		return time.Unix(n, 0).UTC()
	}
	return time.Now().UTC()
}

// roff builds a manual page (man(7)).
type roff struct{ strings.Builder }

func (p *roff) line(s string)       { p.WriteString(s + "\n") }
func (p *roff) section(name string) { p.line(".SH " + escape(name)) }

// text writes an escaped line, in a form that roff cannot take for a request.
func (p *roff) text(s string) {
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	p.line(s)
}

func (p *roff) paragraphs(s string) {
	for i, paragraph := range strings.Split(s, "\n\n") {
		if i > 0 {
			p.line(".PP")
		}
		p.text(escape(strings.Join(strings.Fields(paragraph), " ")))
	}
}

func (p *roff) item(what, text string) {
	p.line(".TP\n.B " + escape(what))
	p.text(escape(text))
}

func (p *roff) verbs(cmd *cobra.Command) {
	if len(cli.Verbs(cmd)) == 0 {
		return
	}
	p.section("VERBS")
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			p.item(c.Name(), c.Short+".")
		}
	}
}

func (p *roff) options(cmd *cobra.Command) {
	if !cmd.HasParent() {
		p.section("OPTIONS")
		p.paragraphs("Each flag is also a key of the same name in the configuration file; the flag wins.")
		for _, s := range config.NewLoader().Sections() {
			p.line(".SS " + escape(s.Title))
			for _, f := range s.Flags {
				p.flag("--"+f.Name, f.Arg, f.Help, f.Default)
			}
		}
		return
	}
	if !cmd.HasAvailableFlags() {
		return
	}
	cmd.InitDefaultHelpFlag()
	p.section("OPTIONS")
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		arg, text := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		p.flag(name, arg, strings.TrimPrefix(text, arg+" "), strings.Trim(f.DefValue, "[]"))
	})
}

func (p *roff) flag(name, arg, help, value string) {
	line := `.TP` + "\n" + `\fB` + escape(name) + `\fR`
	if arg != "" {
		line += `=\fI` + escape(arg) + `\fR`
	}
	p.line(line)
	if value != "" && value != "false" {
		help += " (default " + value + ")"
	}
	p.text(escape(help))
}

func (p *roff) seeAlso(cmd *cobra.Command) {
	var names []string
	if cmd.HasParent() {
		names = append(names, strings.ReplaceAll(cmd.Parent().CommandPath(), " ", "-"))
	}
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, strings.ReplaceAll(c.CommandPath(), " ", "-"))
		}
	}
	for i, name := range names {
		end := ","
		if i == len(names)-1 {
			end = ""
		}
		p.line(".BR " + escape(name) + " (1)" + end)
	}
	if len(names) == 0 {
		p.line(".BR kubectl (1)")
	}
}

func escape(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "’", "'").Replace(s)
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}
