package lb

import (
	"time"

	"golang.org/x/sys/unix"

	"kthwd/lb/check"
)

// Which connections of a dead backend are cut, once another backend is ready.
const (
	CutDead        = "dead"        // all, unless the backend still delivers something
	CutUnreachable = "unreachable" // those of a backend that accepts no connection
	CutNever       = "never"       // none: their ends find out by themselves, as behind nginx
)

// A check that fails says how the backend treats checks. What its connections do is the
// stronger evidence, and the kernel keeps it: for each socket, when the last data and the
// last acknowledgement came (TCP_INFO). It is read only when connections are about to be
// cut, so it costs the data path nothing.

// proof is when connections of a backend last showed that it lives; zero for never.
type proof struct {
	data time.Time // its program sent something
	ack  time.Time // its kernel answered something
}

// add makes a proof the newest of two.
func (p *proof) add(other proof) {
	if other.data.After(p.data) {
		p.data = other.data
	}
	if other.ack.After(p.ack) {
		p.ack = other.ack
	}
}

// proofOf returns the newest proof that the connections of a backend give. It asks every
// loop, and waits for them.
func (s *Server) proofOf(b *Backend) (newest proof) {
	for _, l := range s.loops {
		l.call(func() { newest.add(l.proofOf(b)) })
	}
	return newest
}

func (l *loop) proofOf(b *Backend) (newest proof) {
	for _, p := range l.pairs {
		if p.backend != b || p.phase != relaying || p.server.eof {
			continue
		}
		info, err := unix.GetsockoptTCPInfo(int(p.server.fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			continue
		}
		now := time.Now() // after each one: a proof that seems late spares for a second, one that seems early cuts
		ago := func(ms uint32) time.Time { return now.Add(-time.Duration(ms) * time.Millisecond) }
		newest.add(proof{ago(info.Last_data_recv), ago(info.Last_ack_recv)})
	}
	return newest
}

// lives reports whether a proof came after a check had failed, and lately. The first failed
// check of a row has ended at failing: whatever stopped the backend from answering it had
// happened by then. One that delivered longer than killDelay ago may have stopped since.
//
// An idle connection has nothing to deliver, and an upload is only acknowledged, by a kernel
// that does so for a stopped program as well. So an answer to a check is a proof, too, that came
// when its time was over.
func lives(shown, failing, now time.Time) bool {
	return !failing.IsZero() && shown.Sub(failing) > proofMargin && now.Sub(shown) <= killDelay
}

const proofMargin = 20 * time.Millisecond // the kernel's clock for this is coarse

// spared returns how long the connections of a dead backend stay because they prove that
// it lives, or because it answers checks late; 0 when neither does. A backend that delivers is asked again after a second. One
// whose kernel still answers accepts connections as little as before, but may be
// overloaded, or behind a network that loses packets: it is given the time of one that
// accepts connections and does not answer.
func (s *Server) spared(b *Backend, st *check.Status) time.Duration {
	now := b.checker.Load().Status()
	if b.active.Load() == 0 {
		return 0
	}
	if now.State != check.Dead { // the checker is new, as after a reload, or its verdict is on its way
		return min(killDelay, time.Second)
	}
	found := s.proofOf(b)
	at := time.Now()
	switch left := killDelay - at.Sub(st.Since); {
	case lives(found.data, now.FailingSince, at):
		b.spare(now, false)
		return min(killDelay, time.Second)
	case lives(b.checker.Load().LateAnswer(), now.FailingSince, at):
		b.spare(now, true)
		return min(killDelay, time.Second)
	case !st.Connectable && now.Last == check.KindTimeout && lives(found.ack, now.FailingSince, at) && left > 0:
		return min(left, 250*time.Millisecond)
	}
	return 0
}

// spare notes, and logs once, that a dead backend delivers, or answers checks late.
func (b *Backend) spare(st check.Status, late bool) {
	b.late.Store(late)
	if !b.delivers.Swap(true) {
		b.s.log.Warn("a backend fails its checks but lives", "backend", b.name, "connections", b.active.Load(), "sign", b.sign(), "reason", st.LastReason)
	}
}

// sign says how a backend that fails its checks shows that it lives.
func (b *Backend) sign() string {
	if b.late.Load() {
		return "it answers checks late, and its connections stay"
	}
	return "its connections deliver, and stay"
}

// prodded is how many connections of a backend per loop are asked for a sign of life.
const prodded = 16

// prod makes the kernel ask for a sign of life, at once and every second, on some
// connections of a backend that does not accept others: an idle one has no proof to show.
func (l *loop) prod(b *Backend) {
	n := 0
	for _, p := range l.pairs {
		if p.backend != b || p.phase != relaying || p.prodded {
			continue
		}
		if n++; n > prodded {
			return
		}
		p.prodded = true
		keepAlive(p)
		setInt(p.server.fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, proddedProbes)
		setInt(p.server.fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1)
		setInt(p.server.fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1)
	}
}

// proddedProbes are a second apart, so that a vanished peer is given as long as otherwise.
const proddedProbes = 30

// calm undoes prod, for connections that owe no answer. The others wait for the next check.
func (l *loop) calm(b *Backend) {
	for _, p := range l.pairs {
		if p.backend != b || !p.prodded {
			continue
		}
		if p.prodded = !keepAlive(p); p.prodded {
			b.prodded.Store(true)
		}
	}
}
