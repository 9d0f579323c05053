// Package conns limits the open connections of an HTTP server that must not refuse honest
// clients.
package conns

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// Limit limits the open connections of a server that shares its file descriptors with
// etcd. If the server stopped accepting at the limit, idle connections could lock out
// honest clients. Here a new connection is always accepted, and the one that has waited
// longest for a request is cut: an honest client needs a millisecond, while an attacker
// has to outpace all others.
type Limit struct {
	max int

	mu    sync.Mutex
	open  map[net.Conn]*conn
	turn  uint64        // number of changes of state; a clock without ties
	kept  int           // connections in open that were not cut
	cut   uint64        // connections cut since New
	empty chan struct{} // closed when open becomes empty; nil without a waiter
}

// A conn is one connection with a goroutine in the server.
type conn struct {
	active bool   // it has an unanswered request
	since  uint64 // turn of the last change
	cut    bool   // closed here, but not yet noticed by the server
}

// New returns a limit of max open connections.
func New(max int) *Limit {
	return &Limit{max: max, open: map[net.Conn]*conn{}}
}

// Track is an http.Server's ConnState hook.
func (c *Limit) Track(nc net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn++
	switch state {
	case http.StateNew:
		c.open[nc] = &conn{since: c.turn}
		if c.kept++; c.kept > c.max {
			c.cutOne()
		}
	case http.StateActive, http.StateIdle:
		if cn := c.open[nc]; cn != nil {
			cn.active, cn.since = state == http.StateActive, c.turn
		}
	case http.StateClosed, http.StateHijacked:
		c.remove(nc)
	}
}

func (c *Limit) remove(nc net.Conn) {
	cn := c.open[nc]
	if cn == nil {
		return
	}
	if !cn.cut {
		c.kept--
	}
	delete(c.open, nc)
	if len(c.open) == 0 && c.empty != nil {
		close(c.empty)
		c.empty = nil
	}
}

// cutOne closes the connection without a request for the longest time or, if all have a
// request, the one with the oldest request.
func (c *Limit) cutOne() {
	var victim net.Conn
	var worst *conn
	for nc, cn := range c.open {
		if cn.cut || cn.since == c.turn { // cut already, or the new connection
			continue
		}
		if worst == nil || (worst.active && !cn.active) ||
			(worst.active == cn.active && cn.since < worst.since) {
			victim, worst = nc, cn
		}
	}
	if worst != nil {
		c.close(victim, worst)
		c.cut++
	}
}

// CloseWaiting closes all connections without a request.
func (c *Limit) CloseWaiting() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for nc, cn := range c.open {
		if !cn.cut && !cn.active {
			c.close(nc, cn)
		}
	}
}

func (c *Limit) close(nc net.Conn, cn *conn) {
	nc.Close()
	cn.cut = true
	c.kept--
}

// Wait returns when the goroutines of all connections have ended or ctx is done.
func (c *Limit) Wait(ctx context.Context) {
	c.mu.Lock()
	if len(c.open) == 0 {
		c.mu.Unlock()
		return
	}
	empty := make(chan struct{})
	c.empty = empty
	c.mu.Unlock()
	select {
	case <-empty:
	case <-ctx.Done():
	}
}

// Cuts returns the number of connections closed to make room.
func (c *Limit) Cuts() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}
