package lastrun

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"
	"time"

	"kthwd/appliance/paths"
)

// End is how a run ended.
type End struct {
	Kind    Kind      `json:"kind"`
	At      time.Time `json:"at,omitzero"` // for a process that was killed the last sign of life
	Text    string    `json:"text"`        // one line without a subject: "killed at 02:22, …"
	Do      string    `json:"do,omitempty"`
	Started time.Time `json:"started,omitzero"`
	Version string    `json:"version,omitempty"`
}

// Kind is one word for the way in which a run ended.
type Kind string

// The kinds. Running is the one that is no end.
const (
	Stopped     Kind = "stopped"       // in order, as it was asked to
	Failed      Kind = "failed"        // in order, with an error
	Crashed     Kind = "crashed"       // by a panic or a fatal signal; there is a trace
	OutOfMemory Kind = "out-of-memory" // killed by the kernel for lack of memory
	Killed      Kind = "killed"        // by SIGKILL, or something else that leaves no trace
	Timeout     Kind = "timeout"       // killed by systemd, which had waited too long
	PowerLoss   Kind = "power-loss"    // with the machine
	Running     Kind = "running"
	Unknown     Kind = "unknown" // the record cannot be read
)

// Good reports whether the end needs nobody's attention.
func (e End) Good() bool { return e.Kind == Stopped || e.Kind == Running }

// evidence is what the machine shows of a run that has ended.
type evidence struct {
	boot    string
	kills   map[string]uint64 // by the control groups of the record
	remains bool              // the record's own control group is still the one that it was
	crash   string            // the first lines of the trace
	crashAt time.Time         // when the trace was written
}

// Last tells how the recorded run ended. ErrNone means that none is recorded.
func (f Files) Last() (End, error) {
	r, err := f.Read()
	if err != nil {
		return End{}, err
	}
	if r.Runs() {
		return r.end(Running, r.Started, fmt.Sprintf("running since %s, process %d", clock(r.Started), r.PID), ""), nil
	}
	return r.judge(f.gather(r)), nil
}

// gather collects the evidence about the recorded run.
func (f Files) gather(r Record) evidence {
	e := evidence{boot: boot(), kills: r.killsOf(), remains: r.ownRemains()}
	head, info, err := paths.ReadRegular(f.Crash(), 4<<10)
	if err != nil {
		return e
	}
	e.crash, e.crashAt = reason(head), info.ModTime()
	return e
}

// reason finds the sentence in the trace of a crash: "panic: …", "fatal error: …" or the
// name of a signal.
func reason(trace []byte) string {
	first, _, _ := bytes.Cut(trace, []byte("\n"))
	return line(string(first), mostError)
}

// judge tells how a run ended that runs no more.
func (r Record) judge(e evidence) End {
	switch {
	case !r.EndedAt.IsZero() && r.Error == "":
		return r.end(Stopped, r.EndedAt, "stopped in order at "+clock(r.EndedAt)+r.asked(), "")
	case !r.EndedAt.IsZero():
		return r.end(Failed, r.EndedAt, "ended with an error at "+clock(r.EndedAt)+": "+r.Error, "")
	case e.crash != "":
		return r.crashed(e)
	case r.Boot != e.boot:
		return r.end(PowerLoss, r.alive, "ended at about "+clock(r.alive)+": the machine lost power or was restarted", "")
	}
	if r.Service != nil {
		if end, known := r.service(); known {
			return end
		}
	}
	switch r.starved(e) {
	case sure:
		return r.outOfMemory()
	case perhaps:
		return r.perhapsStarved()
	}
	at, about := r.lastSeen()
	if !r.AskedAt.IsZero() {
		return r.end(Killed, at, fmt.Sprintf("ended%s%s before it had stopped%s: by SIGKILL, or by a second signal", about, clock(at), r.asked()), "")
	}
	return r.end(Killed, at, "killed"+about+clock(at)+" by SIGKILL: it left neither an error nor a trace",
		"find the sender: journalctl -u "+r.unit()+", or the supervisor's log")
}

func (r Record) end(kind Kind, at time.Time, said, do string) End {
	return End{Kind: kind, At: at, Text: line(said, mostText), Do: do, Started: r.Started, Version: r.Version}
}

// lastSeen is when the run ended, as far as that is known.
func (r Record) lastSeen() (at time.Time, about string) {
	if r.Service != nil {
		return r.Service.At, " at "
	}
	return r.alive, " at about "
}

func (r Record) asked() string {
	if r.Signal == "" {
		return ""
	}
	return fmt.Sprintf(", asked to by the signal %q at %s", r.Signal, clock(r.AskedAt))
}

func (r Record) crashed(e evidence) End {
	const abort = "SIGABRT: "
	if strings.HasPrefix(e.crash, abort) {
		return r.end(Crashed, e.crashAt, "aborted at "+clock(e.crashAt)+" by SIGABRT, which systemd sends when the process gives no sign of life (WatchdogSec=)",
			"look in the trace for the goroutine that hangs; kthwd support collects it")
	}
	return r.end(Crashed, e.crashAt, "crashed at "+clock(e.crashAt)+": "+e.crash, "send the trace in a report; kthwd support collects it")
}

// service reads what systemd says (systemd.exec(5), SERVICE_RESULT). known is false where
// the word adds nothing.
func (r Record) service() (_ End, known bool) {
	at := r.Service.At
	switch r.Service.Result {
	case "oom-kill":
		return r.outOfMemory(), true
	case "timeout":
		return r.end(Timeout, at, "killed by systemd at "+clock(at)+r.asked()+": the start or the stop took longer than its unit allows",
			"raise TimeoutStartSec= or TimeoutStopSec= with systemctl edit "+r.unit()), true
	case "watchdog":
		return r.end(Timeout, at, "killed by systemd at "+clock(at)+": the process gave no sign of life (WatchdogSec=)", ""), true
	case "exit-code":
		return r.end(Failed, at, "ended at "+clock(at)+" with exit code "+line(r.Service.Status, 20)+r.asked()+", and could not record why", "read the last lines of the log"), true
	}
	return End{}, false
}

// likelihood is how sure it is that the kernel ended the process for lack of memory.
type likelihood int

const (
	no likelihood = iota
	perhaps
	sure
)

// starved judges by the counter of the process's own control group, which counts also when
// the machine lacks memory. The counters of other groups and of the machine count other
// processes, too: they decide nothing, and only where the own group is gone or was shared do
// they say perhaps.
func (r Record) starved(e evidence) likelihood {
	moved := func(group string) bool {
		before, known := r.Memory.Kills[group]
		return known && e.kills[group] > before
	}
	if own := r.Memory.Own; e.remains {
		switch {
		case !moved(own.Group):
			return no
		case own.Alone:
			return sure
		}
		return perhaps
	}
	for group := range r.Memory.Kills {
		if moved(group) {
			return perhaps
		}
	}
	return no
}

// outOfMemory names the limit, and what kthwd needs.
func (r Record) outOfMemory() End {
	at, about := r.lastSeen()
	said := "killed" + about + clock(at) + ": "
	if r.Memory.Limit != 0 {
		return r.end(OutOfMemory, at, said+r.limited(), r.raiseLimit())
	}
	return r.end(OutOfMemory, at, said+"the kernel ended it because the machine had no memory left", r.findMemory())
}

// perhapsStarved is for a process that SIGKILL has ended while the kernel ended some process,
// this one or another, for lack of memory.
func (r Record) perhapsStarved() End {
	at, about := r.lastSeen()
	said, do := "killed"+about+clock(at)+" by SIGKILL, perhaps by the kernel, which ended a process for lack of memory then", r.findMemory()
	if r.Memory.Limit != 0 {
		said, do = said+": "+r.limited(), r.raiseLimit()
	}
	return r.end(Killed, at, said, "journalctl -k --grep='Killed process' names it; if it was kthwd, "+do)
}

func (r Record) raiseLimit() string {
	do := "raise MemoryMax= with systemctl edit " + r.unit() + ", or the container's limit"
	if r.Memory.Needs == 0 {
		return do
	}
	const enough = 1 << 30
	if r.Memory.Cluster > enough {
		return do + ", to " + mega(r.Memory.Cluster) + " or more"
	}
	return do + ", to 1 GiB or more"
}

// unit is the one that advice names; records of earlier versions have none.
func (r Record) unit() string { return cmp.Or(r.Unit, "kthwd-controller") }

func (r Record) limited() string {
	if r.Memory.Needs == 0 {
		return "memory limit " + mega(r.Memory.Limit)
	}
	if r.Memory.Cluster > r.Memory.Needs {
		return fmt.Sprintf("memory limit %s, with the objects of its cluster this controller needs %s", mega(r.Memory.Limit), mega(r.Memory.Cluster))
	}
	return fmt.Sprintf("memory limit %s, an empty control plane needs %s", mega(r.Memory.Limit), mega(r.Memory.Needs))
}

func (r Record) findMemory() string {
	do := "find what uses the memory: ps -eo rss,args --sort=-rss"
	if r.Memory.Needs == 0 {
		return do
	}
	return do + "; kthwd needs " + mega(max(r.Memory.Needs, r.Memory.Cluster)) + " or more"
}

func mega(n uint64) string { return fmt.Sprintf("%d MiB", n>>20) }

// clock formats a time for people.
func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }
