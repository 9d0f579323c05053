package backup

import (
	"fmt"
	"io"
	"strings"

	"kthwd/appliance/backup/step"
	"kthwd/cmd/kthwd/cli"
)

// progress shows the steps of a backup: on a terminal a bar on one line, elsewhere a line
// for each step that has ended. It is for one goroutine.
type progress struct {
	w        io.Writer
	terminal bool
	quiet    bool
	drawn    int // width of the line on the terminal
}

// newProgress shows progress on standard error, unless quiet.
func (a *app) newProgress(quiet bool) *progress {
	return &progress{w: a.Err, terminal: cli.IsTerminal(a.Err), quiet: quiet}
}

// doing says what a step does.
var doing = map[string]string{
	step.Snapshot: "ask for the database",
	step.Pack:     "write the archive",
	step.Extract:  "read it back",
	step.Restore:  "restore it",
	step.Read:     "compare the keys",
	step.Files:    "open the files",
	step.Prune:    "delete old archives",
	step.Hook:     "run the hook",
}

func (p *progress) report(e step.Event) {
	switch {
	case p.quiet:
	case e.Took > 0:
		p.clear()
		fmt.Fprintf(p.w, "%-20s %6.1fs\n", doing[e.Step], e.Took.Seconds())
	case p.terminal:
		p.draw(e)
	}
}

const barWidth = 30

func (p *progress) draw(e step.Event) {
	line := doing[e.Step] + " …"
	if e.Total > 0 {
		share := min(float64(e.Done)/float64(e.Total), 1)
		full := int(share * barWidth)
		line = fmt.Sprintf("%-20s [%s%s] %3.0f %%", doing[e.Step], strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), share*100)
	}
	p.clear()
	fmt.Fprint(p.w, line)
	p.drawn = len(line)
}

func (p *progress) clear() {
	if p.drawn > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.drawn))
		p.drawn = 0
	}
}

// end leaves the terminal with an empty line.
func (p *progress) end() { p.clear() }
