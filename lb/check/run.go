package check

import (
	"context"
	"fmt"
	"io"
	"time"
)

const (
	fastInterval = 200 * time.Millisecond // between checks while a change of state may be near
	extraGap     = 200 * time.Millisecond // least time between checks triggered by ConnectFailed
)

// A plan holds the start of the next check.
type plan struct {
	due       time.Time
	extra     bool      // triggered by ConnectFailed
	lastExtra time.Time // start of the last such check
}

// set plans the next check.
func (p *plan) set(due, now time.Time) {
	p.due, p.extra = due, false
	if due.Before(now) { // the last check took longer than the interval, so this process was not late
		p.due = now
	}
}

// hurry makes the next check start at once, but no sooner than extraGap after the last
// such check.
func (p *plan) hurry(now time.Time) {
	due := p.lastExtra.Add(extraGap)
	if due.Before(now) {
		due = now
	}
	if due.Before(p.due) {
		p.due, p.extra = due, true
	}
}

func (p *plan) started(now time.Time) {
	if p.extra {
		p.lastExtra, p.extra = now, false
	}
}

// Run checks the backend until ctx ends. It blocks. When it returns, every goroutine it
// started has stopped and the observer is no longer called.
func (c *Checker) Run(ctx context.Context) {
	if c.cfg.Mode == None {
		c.runUnchecked(ctx)
		return
	}
	defer c.kept.late.end()
	defer c.renew()
	now := time.Now()
	c.plan.set(now, now)
	c.alarm = time.NewTimer(0)
	defer c.alarm.Stop()
	for c.wait(ctx) {
		t, ok := c.check(ctx)
		if !ok {
			return
		}
		c.conclude(t)
	}
}

// runUnchecked is Run for mode None: it ends the periods in which the backend is avoided.
func (c *Checker) runUnchecked(ctx context.Context) {
	for ctx.Err() == nil {
		c.mu.Lock()
		left := c.m.tryAgain(time.Now())
		c.mu.Unlock()
		c.reportChange()
		var over <-chan time.Time
		if left > 0 {
			over = time.After(left)
		}
		select {
		case <-ctx.Done():
		case <-over:
		case <-c.kick:
		}
	}
}

// wait blocks until the next check is due and returns true, or false when ctx has ended.
func (c *Checker) wait(ctx context.Context) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-c.after(time.Until(c.plan.due)):
			return ctx.Err() == nil
		case <-c.kick:
			c.plan.hurry(time.Now())
			c.reportChange()
		case <-c.lost:
			// A backend that likes to end idle connections is checked as often as others.
			if now := time.Now(); now.After(c.lostUntil) {
				c.lostUntil = now.Add(c.quiet)
				c.plan.hurry(now)
			}
		}
	}
}

// after is time.After with one timer for all waits: they do not overlap.
func (c *Checker) after(d time.Duration) <-chan time.Time {
	c.alarm.Reset(d)
	return c.alarm.C
}

// A trial is one check and how punctual this process was.
type trial struct {
	result    Result
	covers    uint64 // reports of failed connects at the start
	hurry     bool   // more reports came since
	limit     time.Duration
	due       time.Time
	start     time.Time
	end       time.Time
	nap       time.Duration // between alarms
	wakeUp    time.Time     // when its alarm is due
	oversleep time.Duration // total delay of this process's timers meanwhile
}

// check runs one check. It returns false when ctx has ended. Changes are reported while it
// waits for a dead backend.
func (c *Checker) check(ctx context.Context) (trial, bool) {
	t := trial{limit: c.limit(), due: c.plan.due, start: time.Now(), covers: c.begin()}
	c.plan.started(t.start)
	t.nap = min(t.limit/naps, longestNap)
	t.wakeUp = t.start.Add(t.nap)
	alarm := c.after(t.nap)
	c.await(t.start)
	l := c.kept.ask(t.start.Add(t.limit))
	if l == nil || !c.awaitAnswer(ctx, l, alarm, &t) {
		c.checkAnew(ctx, alarm, &t)
	}
	t.end = time.Now()
	return t, ctx.Err() == nil
}

// In the time of a check, it is seen at least naps times whether this process runs, and
// no less often than after longestNap.
const (
	naps       = 8
	longestNap = 125 * time.Millisecond
)

// slept counts how late an alarm was, sets the next, and returns how late it was.
func (c *Checker) slept(t *trial) (late time.Duration) {
	now := time.Now()
	late = now.Sub(t.wakeUp)
	t.oversleep += late
	t.wakeUp = now.Add(t.nap)
	c.after(t.nap)
	return late
}

// awaitAnswer waits for the answer on a kept connection. It returns false when a new one has
// to tell: the connection has ended, or the backend's kernel has not even acknowledged the
// request, after one repetition. When all is well, a check wakes this goroutine twice, and
// needs no other goroutine, context or timer.
func (c *Checker) awaitAnswer(ctx context.Context, l *line, alarm <-chan time.Time, t *trial) (told bool) {
	for {
		select {
		case got := <-l.answers:
			c.heard()
			t.result, told = c.kept.answered(got)
			return told
		case <-l.done:
			t.result, told = c.kept.answered(reply{err: io.EOF})
			return told
		case <-alarm:
			// A late alarm does not tell whether there was an answer in time.
			late := c.slept(t)
			switch {
			case late >= t.nap:
			case time.Since(t.start) >= t.limit:
				t.result = c.kept.unanswered()
				return true
			case l.acknowledged():
				c.heard()
			case c.Unheard(time.Now()) >= repeated:
				return false
			}
		case <-c.kick:
			t.hurry = true
			c.reportChange()
		case <-ctx.Done():
			return true
		}
	}
}

// repeated is the time in which the kernel repeats a request that is not acknowledged:
// after 200 ms, or more where the round trip is long.
const repeated = 240 * time.Millisecond

// checkAnew runs a check on a new connection, in a goroutine, within what is left of its
// time.
func (c *Checker) checkAnew(ctx context.Context, alarm <-chan time.Time, t *trial) {
	within, cancel := context.WithDeadline(ctx, t.start.Add(t.limit))
	defer cancel()
	c.kept.eager = c.Unheard(time.Now()) >= repeated
	done := make(chan Result, 1)
	go func() { done <- c.probe(within) }()
	for {
		select {
		case t.result = <-done:
			if t.result.Kind != KindTimeout || !t.result.ConnectPhase {
				c.heard()
			}
			return
		case <-alarm:
			c.slept(t)
		case <-c.kick:
			t.hurry = true
			c.reportChange()
		}
	}
}

// begin returns the number of reports that the coming check covers.
func (c *Checker) begin() uint64 {
	select {
	case <-c.kick:
	default:
	}
	c.reportChange()
	c.mu.Lock()
	reports, doubt := c.m.reports, c.m.doubted()
	c.mu.Unlock()
	if doubt {
		c.renew()
	}
	return reports
}

// conclude applies the result of a check and plans the next one.
func (c *Checker) conclude(t trial) {
	r := t.result
	if late := t.late(t.limit); late != "" && r.Kind.verdict() == failed {
		r.NoVerdict = late
	}
	c.mu.Lock()
	was := c.m.s
	c.m.see(r, t.covers, t.end)
	is := c.m.snapshot(t.end)
	pause := c.pause(t, r)
	c.mu.Unlock()

	now := time.Now()
	c.plan.set(t.start.Add(pause), now)
	if t.hurry {
		c.plan.hurry(now)
	}
	if is.State != was.State {
		c.logChange(was, is)
	}
	if c.observer.Checked != nil {
		c.observer.Checked(r)
	}
	c.reportChange()
}

// late tells how this process was too late for a failure to count, or returns "": the
// check started or ended long after its time, or the timers show that the process did not
// run for half of it.
func (t trial) late(timeout time.Duration) string {
	for _, l := range []struct {
		what     string
		by, most time.Duration
	}{
		{"began", t.start.Sub(t.due), timeout},
		{"ended", t.end.Sub(t.start.Add(timeout)), timeout / 2},
		{"ran", t.oversleep, timeout / 2},
	} {
		if l.by > l.most {
			return fmt.Sprintf("the check %s %v late: no CPU", l.what, l.by.Round(time.Millisecond))
		}
	}
	return ""
}

// pause returns the time from the start of this check to the start of the next. The
// caller holds the mutex.
func (c *Checker) pause(t trial, r Result) time.Duration {
	fast := min(fastInterval, c.cfg.Interval)
	switch {
	case r.Shortage != 0:
		return c.jitter(fast) // a descriptor does not become free at once
	case r.NoVerdict != "":
		return 0
	case c.m.fails == 1 && c.m.s.State != Dead:
		return 0
	case c.m.unsettled():
		return c.jitter(fast)
	}
	if !c.spreadOut { // the first checks are all at once; the next ones take turns
		c.spreadOut = true
		return c.together(t, c.spread(c.cfg.Interval))
	}
	return c.together(t, c.jitter(c.cfg.Interval))
}

// apart is the time between the moments at which checks begin. A process that sleeps between
// two checks pays more for waking up than for a check, so those of several backends begin
// together.
const apart = 100 * time.Millisecond

// anyMoment is one of these moments, another one in each process.
var anyMoment = time.Now()

// together returns the pause to such a moment that is nearest to a pause.
func (c *Checker) together(t trial, pause time.Duration) time.Duration {
	every := min(apart, c.cfg.Interval/10)
	if every <= 0 {
		return pause
	}
	beyond := t.start.Add(pause+every/2).Sub(c.moment) % every
	return pause + every/2 - beyond
}

// reportChange calls Changed when there is news.
func (c *Checker) reportChange() {
	s := c.Status()
	n := news{s.State, s.Suspect, s.Connectable, s.Leaving}
	if n == c.reported {
		return
	}
	c.reported = n
	if c.observer.Changed != nil {
		c.observer.Changed(s)
	}
}

func (c *Checker) logChange(was, is Status) {
	name := c.cfg.Backend
	if a, err := c.addr(); name == "" && err == nil {
		name = a.String()
	}
	attrs := []any{"backend", name, "reason", is.Reason, "was", was.State, "after", is.Since.Sub(was.Since).Round(time.Millisecond)}
	switch is.State {
	case Ready:
		c.log.Info("backend ready", attrs...)
	case NotReady:
		c.log.Warn("backend not ready", attrs...)
	case Dead:
		c.log.Warn("backend dead", attrs...)
	}
}
