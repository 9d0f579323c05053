package lease

import (
	"context"
	"sync"
	"time"
)

// GivingUp bounds how long a program may take to give up its lease in a Pause: the time that
// upstream gives its controllers, and more for a slow machine.
const GivingUp = time.Minute

// Pause makes leases give up their terms in order, so that other controllers take them, and
// not campaign until its end. The zero value is ready for use, and its methods may be called
// from any goroutine. A nil Pause never begins.
type Pause struct {
	mu     sync.Mutex
	begun  int           // pauses under way
	why    string        // the reason of the last one
	terms  int           // campaigns and terms under way
	change chan struct{} // closed and replaced at each change; nil until needed
}

// Begin gives up the terms, and blocks until all have ended or ctx ends. why follows "the lease is
// left to others": "while etcd defragments". The caller must call End once in any case.
func (p *Pause) Begin(ctx context.Context, why string) error {
	p.update(func() { p.begun++; p.why = why })
	for {
		terms, changed := p.state(func() int { return p.terms })
		if terms == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// End lets the leases campaign again.
func (p *Pause) End() { p.update(func() { p.begun-- }) }

// reason is why of the last pause; empty before the first.
func (p *Pause) reason() string {
	if p == nil {
		return ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.why
}

// enter blocks while there is a pause or until ctx ends; it calls waits with its reason first if it
// must wait. exit must follow.
func (p *Pause) enter(ctx context.Context, waits func(why string)) {
	if p == nil {
		return
	}
	for said := false; ; {
		p.mu.Lock()
		if p.begun == 0 || ctx.Err() != nil {
			p.terms++
			p.mu.Unlock()
			return
		}
		changed := p.changed()
		p.mu.Unlock()
		if !said {
			said = true
			waits(p.reason())
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (p *Pause) exit() {
	if p != nil {
		p.update(func() { p.terms-- })
	}
}

// paused returns a context that ends with ctx or when a pause begins.
func (p *Pause) paused(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if p == nil {
		return ctx, cancel
	}
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			begun, changed := p.state(func() int { return p.begun })
			if begun > 0 {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}()
	return ctx, cancel
}

func (p *Pause) state(read func() int) (n int, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return read(), p.changed()
}

// changed is closed at the next change. The caller holds mu.
func (p *Pause) changed() <-chan struct{} {
	if p.change == nil {
		p.change = make(chan struct{})
	}
	return p.change
}

func (p *Pause) update(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	if p.change != nil {
		close(p.change)
		p.change = nil
	}
}
