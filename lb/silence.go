package lb

import (
	"time"

	"golang.org/x/sys/unix"
)

// A peer that has vanished answers nothing. Keep-alive notices one to which no data is on its way
// (keepAliveOptions). For data on its way there is TCP_USER_TIMEOUT, but that also ends the
// connection of a peer that answers and takes no data for as long, such as kubectl logs behind a
// pager or one that was stopped with Ctrl-Z (tcp_timer.c: tcp_probe_timer). So the loop looks
// itself, at pairs that had traffic.

var ( // variables for tests
	lookEvery    = 10 * time.Second
	silenceLimit = 30 * time.Second // as with keep-alive
)

// lookLater has a pair looked at, unless it waits for something else.
func (l *loop) lookLater(p *pair) {
	if p.in == nil {
		l.trafficked.push(p, l.now+int64(lookEvery))
	}
}

// look ends a pair with a peer that has vanished, and looks again for as long as the pair has
// traffic, or data on its way.
func (l *loop) look(p *pair) {
	l.trafficked.remove(p)
	again := l.now-p.seen < int64(lookEvery)
	for _, e := range []*end{&p.client, &p.server} {
		if protocol, err := unix.GetsockoptInt(int(e.fd), unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil && protocol != unix.IPPROTO_TCP {
			continue // of Multipath TCP one learns about the first of its paths only
		}
		info, err := unix.GetsockoptTCPInfo(int(e.fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			continue
		}
		if vanished(info) {
			resetOnClose(e.fd) // or the kernel goes on sending, and a peer that comes back reads an orderly end
			l.endBroken(p, e)
			return
		}
		again = again || info.Unacked > 0 || info.Notsent_bytes > 0
	}
	if again {
		l.lookLater(p)
	}
}

// vanished reports whether a peer answers neither data that were sent again nor, where it had no
// room for any, probes for room. A single one may be one that was just sent.
func vanished(info *unix.TCPInfo) bool {
	silent := time.Duration(info.Last_ack_recv) * time.Millisecond
	return silent > silenceLimit && (info.Retransmits > 1 || info.Probes > 1)
}
