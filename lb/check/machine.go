package check

import (
	"cmp"
	"fmt"
	"time"
)

const (
	// A backend that falls within fallsAgain of its last rise is flapping. Its next rise
	// needs good checks without a gap for holdDown, doubled after each further such fall
	// up to maxHoldDown. The count restarts once the backend was ready for forgiveAfter.
	fallsAgain   = 60 * time.Second
	holdDown     = 5 * time.Second
	maxHoldDown  = 60 * time.Second
	forgiveAfter = 2 * time.Minute

	// In mode None, a backend is avoided for minAvoid after a failed connect, doubled
	// after each further failure up to maxAvoid, and then tried again.
	minAvoid = 5 * time.Second
	maxAvoid = 30 * time.Second
)

// A verdict is the effect of a kind of result on the state.
type verdict int

const (
	good     verdict = iota // towards Ready
	answered                // towards NotReady
	failed                  // towards Dead
)

func (k Kind) verdict() verdict {
	switch k {
	case KindOK:
		return good
	case KindNotReady, KindBadStatus, KindBadCert:
		return answered
	}
	return failed
}

// A machine derives a state from results and reports. It uses no clock and no socket.
// Checker.mu guards it.
type machine struct {
	mode       Mode
	fall, rise int
	firstHold  time.Duration
	s          Status // as reported, except for Held, and for Reason while held down

	goods, answers, fails int       // consecutive results of each verdict
	bads                  int       // consecutive answers and fails, mixed
	goodSince             time.Time // time of the first of goods

	lastBad bool   // the last result was not ok
	reports uint64 // calls of connectFailed
	cleared uint64 // reports that a later ok check has cleared

	risen time.Time     // the last rise; zero before it
	falls int           // falls within fallsAgain of a rise
	hold  time.Duration // how long the next rise needs good checks

	avoidUntil time.Time // mode None
	avoided    int       // mode None: consecutive times
}

func newMachine(cfg Config, now time.Time) machine {
	m := machine{mode: cfg.Mode, fall: max(cfg.Fall, 1), rise: max(cfg.Rise, 1), firstHold: cmp.Or(cfg.Hold, holdDown)}
	m.s = Status{State: Unknown, Since: now, Reason: "not checked yet"}
	if cfg.Mode == None {
		m.s.State, m.s.Reason, m.s.Connectable = Ready, "backends are not checked", true
	}
	return m
}

// see processes a result. covers is the value of reports when its check started.
func (m *machine) see(r Result, covers uint64, now time.Time) {
	if r.NoVerdict != "" {
		m.s.Late++
		return
	}
	m.count(r.Kind.verdict(), now)
	m.s.Last, m.s.Connectable = r.Kind, !r.ConnectPhase
	if r.Kind.verdict() != failed { // without an answer, what the last one said stays true
		m.s.Leaving = r.Leaving
	}
	if !r.CertExpiry.IsZero() {
		m.s.CertExpiry = r.CertExpiry
	}
	reason := r.reason()
	m.s.LastReason = ""
	if m.lastBad = r.Kind != KindOK; m.lastBad {
		m.s.SuspectReason, m.s.LastReason = reason, reason
	} else {
		m.cleared = covers
	}
	m.suspect()
	if to := m.verdict(now); to != m.s.State {
		m.become(to, reason, now)
	}
}

// reason returns the result in one line, such as "timeout: no TLS answer within 1s".
func (r Result) reason() string {
	if r.Err == "" {
		return string(r.Kind)
	}
	return string(r.Kind) + ": " + r.Err
}

func (m *machine) count(v verdict, now time.Time) {
	if v == good {
		if m.goods++; m.goods == 1 {
			m.goodSince = now
		}
		m.bads, m.answers, m.fails, m.s.FailingSince = 0, 0, 0, time.Time{}
		return
	}
	m.goods = 0
	m.bads++
	if v == answered {
		m.answers, m.fails, m.s.FailingSince = m.answers+1, 0, time.Time{}
		return
	}
	if m.answers, m.fails = 0, m.fails+1; m.fails == 1 {
		m.s.FailingSince = now
	}
}

// verdict returns the state that follows from the results so far.
func (m *machine) verdict(now time.Time) State {
	first := m.s.State == Unknown // one answer of any kind is better than none
	switch {
	case m.goods > 0 && first, m.goods >= m.rise && now.Sub(m.goodSince) >= m.hold:
		return Ready
	case m.fails >= m.fall:
		return Dead
	case m.answers >= m.fall, m.answers > 0 && first:
		return NotReady
	case m.bads >= m.fall && m.s.State == Ready:
		return NotReady // alternating answers and failures: not ready, but not dead
	}
	return m.s.State
}

func (m *machine) become(to State, reason string, now time.Time) {
	switch {
	case m.s.State == Ready:
		m.fell(now)
	case to == Ready:
		m.rose(now)
	}
	switch to {
	case Ready:
		m.s.Transitions.Ready++
	case NotReady:
		m.s.Transitions.NotReady++
	case Dead:
		m.s.Transitions.Dead++
	}
	m.s.State, m.s.Since, m.s.Reason = to, now, reason
}

// fell sets how long the backend will be held down. The first fall has no penalty.
func (m *machine) fell(now time.Time) {
	up := now.Sub(m.risen)
	switch {
	case m.risen.IsZero() || up > forgiveAfter:
		m.falls = 0
	case up < fallsAgain:
		m.falls++
		m.hold = min(m.firstHold<<min(m.falls-1, 10), maxHoldDown)
	}
}

func (m *machine) rose(now time.Time) {
	m.hold = 0
	if m.s.State != Unknown { // otherwise it has never been down
		m.risen = now
	}
}

// held reports whether the checks pass and only the hold-down keeps the backend from being
// ready.
func (m *machine) held() bool { return m.s.State != Ready && m.goods > 0 && m.hold > 0 }

// unsettled reports whether a change of state may be near, so that checks run faster.
func (m *machine) unsettled() bool {
	switch m.s.State {
	case Ready:
		return m.bads > 0
	case NotReady:
		return m.answers == 0
	}
	return true
}

// doubted reports whether only a new connection can tell how the backend is: it was not
// answered last time, or a client's connect has failed since.
func (m *machine) doubted() bool { return m.fails > 0 || m.reports != m.cleared }

func (m *machine) suspect() {
	if m.s.Suspect = m.lastBad || m.reports != m.cleared; !m.s.Suspect {
		m.s.SuspectReason = ""
	}
}

func (m *machine) connectFailed(reason string, now time.Time) {
	if m.mode == None {
		m.avoid(reason, now)
		return
	}
	m.reports++
	m.s.SuspectReason = "connect failed: " + printable(reason)
	m.suspect()
}

// avoid starts a period in which the backend is Suspect. Failures within it come from
// connects already under way or from clients without a choice, so they count once.
func (m *machine) avoid(reason string, now time.Time) {
	if m.s.Suspect {
		return
	}
	m.avoidUntil = now.Add(min(minAvoid<<min(m.avoided, 10), maxAvoid))
	m.avoided++
	m.s.Suspect, m.s.Connectable = true, false
	m.s.SuspectReason = "connect failed: " + printable(reason)
}

// tryAgain ends the period of avoid when it is over, and returns the time left.
func (m *machine) tryAgain(now time.Time) time.Duration {
	left := m.avoidUntil.Sub(now)
	if m.s.Suspect && left <= 0 {
		m.s.Suspect, m.s.Connectable, m.s.SuspectReason = false, true, ""
	}
	return left
}

func (m *machine) connectOK() {
	m.avoided, m.avoidUntil = 0, time.Time{}
	m.s.Suspect, m.s.Connectable, m.s.SuspectReason = false, true, ""
}

func (m *machine) snapshot(now time.Time) Status {
	s := m.s
	if s.Held = m.held(); s.Held {
		left := max(0, m.hold-now.Sub(m.goodSince))
		left = (left + time.Second - 1).Truncate(time.Second)
		s.Reason = fmt.Sprintf("held down for another %v: it fell %d times", left, m.falls+1)
	}
	return s
}
