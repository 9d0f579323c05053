package health

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// conns limits the open connections of a server. The bridge shares its file descriptors
// with etcd, so it needs a limit. But if it stopped accepting at the limit, idle
// connections could lock out honest clients. Here a new connection is always accepted,
// and the one that has waited longest for a request is cut: an honest client needs a
// millisecond, while an attacker has to outpace all others.
type conns struct {
	max int

	mu    sync.Mutex
	open  map[net.Conn]*conn
	turn  uint64        // number of changes of state; a clock without ties
	kept  int           // connections in open that were not cut
	cut   uint64        // connections cut since newConns
	empty chan struct{} // closed when open becomes empty; nil without a waiter
}

// A conn is one connection with a goroutine in the server.
type conn struct {
	active bool   // it has an unanswered request
	since  uint64 // turn of the last change
	cut    bool   // closed here, but not yet noticed by the server
}

func newConns(max int) *conns {
	return &conns{max: max, open: map[net.Conn]*conn{}}
}

// track is an http.Server's ConnState hook.
func (c *conns) track(nc net.Conn, state http.ConnState) {
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

func (c *conns) remove(nc net.Conn) {
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
func (c *conns) cutOne() {
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

// closeWaiting closes all connections without a request.
func (c *conns) closeWaiting() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for nc, cn := range c.open {
		if !cn.cut && !cn.active {
			c.close(nc, cn)
		}
	}
}

func (c *conns) close(nc net.Conn, cn *conn) {
	nc.Close()
	cn.cut = true
	c.kept--
}

// wait returns when the goroutines of all connections have ended or ctx is done.
func (c *conns) wait(ctx context.Context) {
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

// cuts returns the number of connections closed to make room.
func (c *conns) cuts() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}
