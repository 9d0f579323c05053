package lb

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/lb/check"
)

// limitKind is a limit of this balancer or of its machine. Reaching one is no fault of a
// backend, and is not counted as one.
type limitKind uint8

const (
	limitConnections limitKind = iota // MaxConnections
	limitPerSource                    // MaxPerSource
	limitHeld                         // MaxHeld
	limitDescriptors                  // of the process, or of the machine
	limitPorts                        // local ports towards a backend
	limitMemory                       // of the kernel, for sockets
	limitAccessLog                    // the disk of the access log, or its speed
	limitSource                       // an address of Sources that the machine no longer has
	limitKinds
)

// limitNames are the limits in status, metrics and the log.
var limitNames = [limitKinds]string{"max_connections", "max_connections_per_source", "max_held", "descriptors", "ports", "kernel_memory", "access_log", "source_address"}

// consequences say for each limit what is the matter and what helps.
var consequences = [limitKinds]struct{ text, do string }{
	limitConnections: {"--max-connections is reached: new clients wait in the kernel's queue", "raise --max-connections, or add a load balancer"},
	limitPerSource:   {"--max-connections-per-source is reached: an address that has as many is refused", "raise --max-connections-per-source, or see in the access log which address it is"},
	limitHeld:        {"--max-held is reached: clients are closed while no backend answers", "bring a backend back; --max-held lets more clients wait"},
	limitDescriptors: {"no file descriptor is free: new clients wait in the kernel's queue", "raise LimitNOFILE= of the unit, or ulimit -n; a client takes two"},
	limitPorts:       {"no local port towards a backend is free: clients wait for one", "give further addresses of this machine with --source, or widen net.ipv4.ip_local_port_range"},
	limitMemory:      {"the kernel has no memory for another socket", "see net.ipv4.tcp_mem and the memory limit of the unit"},
	limitSource:      {"an address of --source is no longer on this machine: connections come from the others, and clients wait where there is none", "give this machine the address again, or take it out of --source"},
	limitAccessLog:   {"the access log takes no more lines, and some are lost", "make room on its disk, or turn it off with --access-log="},
}

const (
	limitTick  = time.Second
	limitOver  = time.Minute // a limit not reached for this long is over
	limitAgain = 10 * time.Minute
)

// limit counts how often one limit was reached. Only that path, which serves no client,
// writes to it.
type limit struct {
	hits atomic.Uint64
	last atomic.Int64 // on the server's clock, in nanoseconds; 0 for never
}

// limits are the limits of a server, and what was said about them.
type limits struct {
	all [limitKinds]limit
	of  [limitKinds]limitReport
}

// limitReport belongs to watchLimits, and under Server.mu to others.
type limitReport struct {
	active bool
	since  time.Time
	said   time.Time
	before uint64 // hits when it was last said
}

// reach records that a limit was reached.
func (s *Server) reach(k limitKind) {
	l := &s.limits.all[k]
	l.hits.Add(1)
	l.last.Store(max(1, s.clock()))
}

// limitOf returns the limit that an error of a socket means; false for other errors.
func limitOf(errno syscall.Errno) (limitKind, bool) {
	switch errno {
	case unix.EMFILE, unix.ENFILE:
		return limitDescriptors, true
	case unix.EADDRNOTAVAIL, unix.EAGAIN, unix.EADDRINUSE:
		return limitPorts, true
	case check.NoSource:
		return limitSource, true
	case unix.ENOBUFS, unix.ENOMEM:
		return limitMemory, true
	}
	return 0, false
}

// watchLimits says which limits are reached, until ctx ends: one line when one is, one
// every ten minutes while it lasts, and one when it is over.
func (s *Server) watchLimits(ctx context.Context) {
	tick := time.NewTicker(limitTick)
	defer tick.Stop()
	for {
		s.sayLimits(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Server) sayLimits(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range limitKinds {
		l, r := &s.limits.all[k], &s.limits.of[k]
		last, hits := l.last.Load(), l.hits.Load()
		active := last != 0 && s.clock()-last < int64(limitOver)
		switch {
		case active && (!r.active || now.Sub(r.said) >= limitAgain && hits > r.before):
			if !r.active {
				r.since = now
			}
			s.log.Warn("a limit is reached", "limit", limitNames[k], "times", hits-r.before, "value", s.limitValue(k), "what", consequences[k].text, "hint", consequences[k].do)
			r.active, r.said, r.before = true, now, hits
		case !active && r.active:
			s.log.Info("a limit is no longer reached", "limit", limitNames[k], "times", hits-r.before, "lasted", now.Sub(r.since).Round(time.Second))
			*r = limitReport{before: hits}
		}
	}
}

// limitValue is the number of a limit; "" where there is none.
func (s *Server) limitValue(k limitKind) string {
	cfg := s.cfg.Load()
	switch k {
	case limitConnections:
		return fmt.Sprint(s.limit.Load())
	case limitPerSource:
		return fmt.Sprint(cfg.MaxPerSource)
	case limitHeld:
		return fmt.Sprint(cfg.MaxHeld)
	case limitDescriptors:
		var r unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) == nil {
			return fmt.Sprint(r.Cur)
		}
	case limitAccessLog:
		return cfg.AccessLog
	case limitSource:
		var gone []string
		for _, a := range cfg.sourceAddresses() {
			if !isLocal(a) {
				gone = append(gone, a.String())
			}
		}
		return strings.Join(gone, ", ")
	}
	return ""
}

// LimitStatus is a limit that was reached in the last minute.
type LimitStatus struct {
	Name  string    `json:"name"`  // max_connections, max_connections_per_source, max_held, descriptors, ports, kernel_memory, access_log, source_address
	Value string    `json:"value"` // of the limit, where it has one
	Hits  uint64    `json:"hits"`  // since the start
	Since time.Time `json:"since"`
	Text  string    `json:"text"` // what is the matter
	Do    string    `json:"do"`   // what helps
}

// limitsReached returns the limits in force. The caller holds the lock.
func (s *Server) limitsReached() (all []LimitStatus) {
	for k := range limitKinds {
		if r := s.limits.of[k]; r.active {
			c := consequences[k]
			all = append(all, LimitStatus{Name: limitNames[k], Value: s.limitValue(k), Hits: s.limits.all[k].hits.Load(), Since: r.since, Text: c.text, Do: c.do})
		}
	}
	return all
}
