package lb

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/appliance/paths"
)

// An upgrade hands the listeners and the live connections of an old process to a new
// one, as descriptors over a unix socket (SCM_RIGHTS, unix(7)). The balancer holds no
// TLS state, so a connection is no more than two descriptors, the bytes read but not yet
// written, and the directions that have ended.
//
//	new                                   old
//	hello ─────────────────────────────►
//	     ◄───────────────────────────── listeners   (and their descriptors)
//	 … checks its backends, accepts …
//	go ────────────────────────────────►            stops accepting
//	     ◄───────────────────────────── pairs       (at most 120, and their descriptors)
//	ack ───────────────────────────────►            closes its copies
//	 … until there are no more …
//	     ◄───────────────────────────── done        ends
//
// For a moment both processes accept, which clients do not notice: it is one socket.
// Until go the old process is unchanged. When the new one fails later, the old one takes
// back the unacknowledged connections and continues. Each verifies the user of the other
// (SO_PEERCRED).
const (
	upgradeVersion = 1
	pairsPerFrame  = 120 // two descriptors each; the kernel takes 253 at once (SCM_MAX_FD)
	frameTimeout   = 5 * time.Second
	maxFrame       = 64 << 20
	bytesPerFrame  = 8 << 20 // of pending bytes; the last connection may exceed it by two full pipes
)

// frame is one message.
type frame struct {
	Kind      string   `json:"kind"` // hello, listeners, go, pairs, ack, done
	Version   int      `json:"version,omitempty"`
	PID       int      `json:"pid,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	Service   []string `json:"service,omitempty"` // those of addresses whose sockets the service manager keeps
	Pairs     []handed `json:"pairs,omitempty"`
}

// handed is a pair on its way to another process.
type handed struct {
	Listener string         `json:"listener"`
	Backend  string         `json:"backend,omitempty"` // "" for a client without a backend, which has one descriptor, not two
	Peer     netip.AddrPort `json:"peer"`
	Age      time.Duration  `json:"age"`
	Up       uint64         `json:"up"`
	Down     uint64         `json:"down"`
	Via      netip.AddrPort `json:"via,omitzero"`       // the proxy that the client is behind
	To       netip.AddrPort `json:"to,omitzero"`        // the address that the client connected to, there
	Headless bool           `json:"headless,omitempty"` // its PROXY header is not whole yet
	Client   handedEnd      `json:"client"`
	Server   handedEnd      `json:"server"`
}

type handedEnd struct {
	EOF  bool   `json:"eof,omitempty"`
	Shut bool   `json:"shut,omitempty"`
	Out  []byte `json:"out,omitempty"` // bytes to write to this end once it exists
}

// wire sends and receives frames.
type wire struct{ conn *net.UnixConn }

// send writes a frame: the length, the number of descriptors, the descriptors and the
// text. A short frame is sent whole or not at all.
func (w wire) send(f frame, fds ...int) error {
	text, err := json.Marshal(f)
	if err != nil {
		return err
	}
	message := binary.BigEndian.AppendUint32(nil, uint32(len(text)))
	message = binary.BigEndian.AppendUint32(message, uint32(len(fds)))
	message = append(message, text...)
	w.conn.SetDeadline(time.Now().Add(frameTimeout))
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	n, _, err := w.conn.WriteMsgUnix(message, rights, nil)
	if err == nil && n < len(message) {
		_, err = w.conn.Write(message[n:])
	}
	return err
}

// receive reads a frame of one of kinds. The caller closes the descriptors.
func (w wire) receive(timeout time.Duration, kinds ...string) (f frame, fds []int, err error) {
	defer func() {
		if err != nil {
			closeAll(fds)
			fds = nil
		}
	}()
	w.conn.SetDeadline(time.Now().Add(timeout))
	var header [8]byte
	rights := make([]byte, unix.CmsgSpace(4*2*pairsPerFrame))
	n, m, _, _, err := w.conn.ReadMsgUnix(header[:], rights)
	if err != nil {
		return f, nil, err
	}
	if fds, err = descriptors(rights[:m]); err != nil {
		return f, fds, err
	}
	if _, err = io.ReadFull(w.conn, header[n:]); err != nil {
		return f, fds, err
	}
	size, count := binary.BigEndian.Uint32(header[:4]), binary.BigEndian.Uint32(header[4:])
	if size > maxFrame || int(count) != len(fds) || count > 0 && !slices.Contains(kinds, "listeners") && !slices.Contains(kinds, "pairs") {
		return f, fds, fmt.Errorf("a frame of %d bytes with %d of %d descriptors", size, len(fds), count)
	}
	text := make([]byte, size)
	if _, err = io.ReadFull(w.conn, text); err != nil {
		return f, fds, err
	}
	if err = json.Unmarshal(text, &f); err == nil && !slices.Contains(kinds, f.Kind) {
		err = fmt.Errorf("got %q, want %s", f.Kind, strings.Join(kinds, " or "))
	}
	return f, fds, err
}

func descriptors(rights []byte) (fds []int, err error) {
	if len(rights) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	for _, m := range messages {
		some, errRights := unix.ParseUnixRights(&m)
		fds, err = append(fds, some...), errors.Join(err, errRights)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// upgradeSocket returns the address of the socket. By default it is abstract: it needs
// no directory, leaves no file behind, and ends with the process.
func (s *Server) upgradeSocket() *net.UnixAddr {
	cfg := s.cfg.Load()
	name := cfg.UpgradeSocket
	if name == "" {
		h := fnv.New64a()
		for _, l := range slices.Sorted(slices.Values(cfg.ListenAddresses())) {
			fmt.Fprintln(h, l)
		}
		name = fmt.Sprintf("@kthwd-lb-%d-%x", os.Getuid(), h.Sum64())
	}
	return &net.UnixAddr{Name: name, Net: "unix"}
}

// checkPeer refuses a process of another user, except root.
func checkPeer(conn *net.UnixConn) (pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var errCred error
	if err := raw.Control(func(fd uintptr) { cred, errCred = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if errCred != nil {
		return 0, errCred
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Getuid() {
		return 0, fmt.Errorf("process %d on the upgrade socket belongs to another user (%d)", cred.Pid, cred.Uid)
	}
	return int(cred.Pid), nil
}

// handover counts the results of upgrades.
type handover struct {
	taken, given, lost atomic.Uint64
	longest            atomic.Int64
	now                atomic.Bool // a hand-over is under way
}

func (h *handover) counts() map[string]uint64 {
	return map[string]uint64{"taken_over": h.taken.Load(), "handed_over": h.given.Load(), "failed": h.lost.Load()}
}

func (h *handover) pause() time.Duration { return time.Duration(h.longest.Load()) }

// predecessor is the old process of a take-over; nil when there is none.
type predecessor struct {
	wire
	pid       int
	listeners []inheritedSocket
}

// predecessor requests the listeners of the running process. It returns nil when this
// process was not started to take over.
func (s *Server) predecessor(ctx context.Context) (*predecessor, error) {
	if !s.o.TakeOver {
		return nil, nil
	}
	conn, err := (&net.Dialer{Timeout: frameTimeout}).DialContext(ctx, "unix", s.upgradeSocket().Name)
	if err != nil {
		return nil, fmt.Errorf("take over: %w", err)
	}
	old := &predecessor{wire: wire{conn.(*net.UnixConn)}}
	if old.pid, err = checkPeer(old.conn); err == nil {
		err = old.requestListeners()
	}
	if err != nil {
		return nil, fmt.Errorf("take over: %w", errors.Join(err, conn.Close()))
	}
	s.log.Info("taking over", "from", old.pid, "listeners", len(old.listeners))
	return old, nil
}

func (o *predecessor) requestListeners() error {
	if err := o.send(frame{Kind: "hello", Version: upgradeVersion, PID: os.Getpid()}); err != nil {
		return err
	}
	f, fds, err := o.receive(frameTimeout, "listeners")
	if err != nil {
		return err
	}
	if f.Version != upgradeVersion {
		closeAll(fds)
		return fmt.Errorf("process %d speaks version %d of the hand-over, this one %d", o.pid, f.Version, upgradeVersion)
	}
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "listener")
		ln, err := net.FileListener(file)
		file.Close()
		if err != nil {
			return err
		}
		o.listeners = append(o.listeners, inheritedSocket{ln.(*net.TCPListener), i < len(f.Addresses) && slices.Contains(f.Service, f.Addresses[i])})
	}
	return nil
}

// sockets returns the listeners of the old process; the caller owns them.
func (o *predecessor) sockets() (all []inheritedSocket) {
	if o == nil {
		return nil
	}
	all, o.listeners = o.listeners, nil
	return all
}

func (o *predecessor) close() {
	if o == nil {
		return
	}
	o.conn.Close()
	for _, l := range o.listeners {
		l.Close()
	}
}

// takeOver receives all connections of the old process. Failing after the first ones
// have arrived would lose them, so a later error is logged, and the process continues
// with the connections it has.
func (s *Server) takeOver(old *predecessor) error {
	if old == nil {
		return nil
	}
	if err := old.send(frame{Kind: "go"}); err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	begun, n := time.Now(), 0
	for {
		f, fds, err := old.receive(frameTimeout, "pairs", "done")
		switch {
		case err != nil && n == 0:
			return fmt.Errorf("take over: %w", err)
		case err != nil:
			s.log.Error("take-over failed midway", "from", old.pid, "connections", n, "err", err)
			return nil
		case f.Kind == "done":
			s.log.Info("taken over", "from", old.pid, "connections", n, "took", time.Since(begun).Round(time.Millisecond))
			return nil
		}
		if err := old.send(frame{Kind: "ack"}); err != nil { // the old process takes these connections back
			closeAll(fds)
			s.log.Error("take-over failed midway", "from", old.pid, "connections", n, "err", err)
			return nil
		}
		s.adoptHanded(f.Pairs, fds)
		n += len(f.Pairs)
	}
}

// adoptHanded converts received connections to pairs and gives them to the loops.
func (s *Server) adoptHanded(all []handed, fds []int) {
	for _, h := range all {
		want := 1
		if h.Backend != "" {
			want = 2
		}
		if len(fds) < want {
			s.handover.lost.Add(1)
			break
		}
		p := s.pairOf(h, fds[:want])
		fds = fds[want:]
		s.active.Add(1)
		p.listener.active.Add(1)
		s.handover.taken.Add(1)
		if p.backend != nil {
			p.backend.active.Add(1)
		}
		if !p.headless { // else once its header names the client
			s.sources.enter(p, 1<<62)
		}
		l := s.loops[s.next.Add(1)%uint64(len(s.loops))]
		l.post(func() { l.attach(p) })
	}
	closeAll(fds)
}

func (s *Server) pairOf(h handed, fds []int) *pair {
	p := &pair{client: newEnd(int32(fds[0])), peer: h.Peer, born: s.clock() - int64(h.Age), up: h.Up, down: h.Down, listener: s.listenerNamed(h.Listener)}
	p.client.eof, p.client.shut, p.client.out = h.Client.EOF, h.Client.Shut, h.Client.Out
	if h.Backend != "" {
		p.server = newEnd(int32(fds[1]))
		p.server.eof, p.server.shut, p.server.out = h.Server.EOF, h.Server.Shut, h.Server.Out
		p.backend, p.phase = s.backendOf(h.Backend, fds[1]), relaying
	} else {
		p.first, p.headless = h.Server.Out, h.Headless
	}
	if h.Via.IsValid() {
		p.proxied = &proxied{via: h.Via, to: h.To}
	}
	return p
}

// listenerNamed returns the listener with that address, or the first one when the new
// configuration has no such listener, so that the connection lives on.
func (s *Server) listenerNamed(address string) *listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		if l.address == address {
			return l
		}
	}
	return s.listeners[0]
}

// backendOf returns the backend of a connection that was handed over. If the new
// configuration does not have it, the backend is created and drained. An older process
// called a backend what the configuration calls it, which may be a name: then the socket
// tells the address.
func (s *Server) backendOf(name string, fd int) *Backend {
	at, err := netip.ParseAddrPort(name)
	if err != nil {
		at = peerAddr(fd)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.backends {
		if b.at == at {
			return b
		}
	}
	cfg := s.cfg.Load()
	b := s.newBackend(member{at: at, weight: normalWeight})
	b.start(*cfg, s.files)
	s.backends = append(s.backends, b)
	s.remove(b, cfg.DrainTimeout)
	return b
}

// peerAddr returns the address that a socket is connected to; the zero one when it no
// longer is.
func peerAddr(fd int) netip.AddrPort {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// attach adds a whole pair that belongs to no loop to this loop.
func (l *loop) attach(p *pair) {
	p.loop = l
	if p.backend != nil {
		p.traffic = p.backend.trafficOf(p.listener, l)
	}
	l.add(p)
	if !l.s.slots.set(p.client.fd, p) || p.phase == relaying && !l.s.slots.set(p.server.fd, p) {
		l.end(p, endError)
		return
	}
	if p.phase != relaying {
		watch(l.epfd, unix.EPOLL_CTL_ADD, p.client.fd, unix.EPOLLIN|unix.EPOLLRDHUP)
		l.fresh.push(p, p.listener.silentUntil(l.now, l.s.settings().firstByte))
		switch {
		case p.headless && p.proxied != nil:
			p.client.readable = true
			l.readHeader(p)
		case len(p.first) > 0:
			l.beginConnect(p)
		}
		return
	}
	l.young.push(p, l.now)
	for _, e := range []*end{&p.client, &p.server} {
		e.readable, e.writable, e.watched = true, true, true
		watch(l.epfd, unix.EPOLL_CTL_ADD, e.fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP)
	}
	if p.backend.drained.Load() { // its drain time has ended
		p.doom = endRemoved
		l.requeue(&l.doomed, p, l.now)
	}
	l.relay(p)
}

// detachPairs removes up to n of the pairs that which selects from the loop. They are
// whole, with empty pipes, and have no more pending bytes than a frame may hold. Their
// descriptors stay open but leave the epoll set explicitly, because the copies in
// another process would keep the watch alive (epoll(7)).
func (l *loop) detachPairs(n int, which func(*pair) bool) (all []*pair) {
	pending := 0
	for i := len(l.pairs) - 1; i >= 0 && len(all) < n && pending < bytesPerFrame; i-- {
		p := l.pairs[i] // when it is detached, a pair already visited takes its place
		if !which(p) {
			continue
		}
		whole := l.detach(p)
		pending += len(whole.first) + len(whole.client.out) + len(whole.server.out)
		all = append(all, whole)
	}
	return all
}

// anyPair selects every pair for detachPairs.
func anyPair(*pair) bool { return true }

// settledPair selects the pairs with empty pipes for a move within the process, so that
// no spliced data is copied to memory.
func settledPair(p *pair) bool {
	return p.phase == relaying && p.client.pipe == nil && p.server.pipe == nil
}

// detach removes a pair from the loop and returns a whole copy. The original, which the
// loop may still refer to in its lists, counts as ended.
func (l *loop) detach(p *pair) *pair {
	if p.in != nil {
		p.in.remove(p)
	}
	l.endConnect(p)
	p.connect = nil
	l.unwatch(p.client.fd)
	if p.phase == relaying {
		l.unwatch(p.server.fd)
		l.emptyPipe(&p.client)
		l.emptyPipe(&p.server)
	} else {
		p.phase = fresh
	}
	l.drop(p)
	whole := *p
	whole.loop, whole.queued = nil, false
	p.phase = ended
	return &whole
}

func (l *loop) unwatch(fd int32) {
	watch(l.epfd, unix.EPOLL_CTL_DEL, fd, 0)
	l.s.slots.clear(fd)
}

// emptyPipe reads the data in an end's pipe into its pending bytes.
func (l *loop) emptyPipe(e *end) {
	if e.pipe == nil {
		return
	}
	e.out = make([]byte, e.pipe.full)
	for at := 0; at < len(e.out); {
		n, err := unix.Read(int(e.pipe.r), e.out[at:])
		if n <= 0 && !errors.Is(err, syscall.EINTR) {
			break // impossible: the pipe holds that many bytes
		}
		at += max(n, 0)
	}
	e.pipe.full = 0
	l.pipes.put(e.pipe)
	e.pipe = nil
}

// awaitSuccessor serves the upgrade socket until ctx ends, in a goroutine of others. The
// channel is closed when a new process has taken over.
func (s *Server) awaitSuccessor(ctx context.Context, others *sync.WaitGroup) (<-chan struct{}, error) {
	ln, err := s.listenForSuccessor()
	if err != nil && !errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("upgrade socket: %w", err)
	}
	s.mu.Lock()
	s.upgrades = ln
	s.mu.Unlock()
	gone := make(chan struct{})
	others.Go(func() {
		for {
			if ln == nil {
				ln = s.awaitUpgradeSocket(ctx)
			}
			if ln == nil {
				return
			}
			for ln != nil {
				over := s.serveUpgradeSocket(ctx, ln)
				ln = s.renamedUpgradeSocket()
				if over {
					if ln != nil {
						ln.Close()
					}
					close(gone)
					return
				}
			}
		}
	})
	return gone, nil
}

// serveUpgradeSocket serves new processes until one has taken over; then it returns true.
// It returns false when the socket is closed: ctx has ended, or a reload has changed the
// listeners, which the socket is named after.
func (s *Server) serveUpgradeSocket(ctx context.Context, ln *net.UnixListener) bool {
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	s.mu.Lock()
	s.upgrades = ln
	if ln.Addr().String() != s.upgradeSocket().Name { // a reload has renamed it meanwhile
		ln.Close()
	}
	s.mu.Unlock()
	for {
		conn, err := ln.AcceptUnix()
		if err != nil {
			return false
		}
		if s.serveSuccessor(ctx, wire{conn}) {
			return true
		}
	}
}

// renamedUpgradeSocket returns the upgrade socket under its new name, if a reload has opened
// one. The one before is served no more.
func (s *Server) renamedUpgradeSocket() (ln *net.UnixListener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ln, s.renamed, s.upgrades = s.renamed, nil, s.renamed
	return ln
}

// listenForSuccessor opens the upgrade socket. It replaces a socket file left behind by
// a killed process.
func (s *Server) listenForSuccessor() (*net.UnixListener, error) {
	at := s.upgradeSocket()
	ln, err := net.ListenUnix("unix", at)
	if !errors.Is(err, unix.EADDRINUSE) || strings.HasPrefix(at.Name, "@") {
		return ln, err
	}
	conn, errDial := net.DialUnix("unix", nil, at)
	if errDial == nil {
		conn.Close()
		return nil, err
	}
	if errors.Is(errDial, unix.ECONNREFUSED) { // of a regular file, too
		if err := paths.RemoveSocket(at.Name); err != nil {
			return nil, err
		}
	}
	return net.ListenUnix("unix", at)
}

// awaitUpgradeSocket opens the upgrade socket once its present owner has closed it. The
// old process closes it after it has sent done, or keeps it when the hand-over failed.
// Serving without the socket is better than ending, which would lose all connections. It
// returns nil when ctx ends first.
func (s *Server) awaitUpgradeSocket(ctx context.Context) *net.UnixListener {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for tries := 1; ; tries++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		ln, err := s.listenForSuccessor()
		if err == nil {
			return ln
		}
		if tries == 100 {
			s.log.Warn("this process cannot be upgraded for now", "err", err)
			tick.Reset(time.Second)
		}
	}
}

// serveSuccessor serves one new process. It returns true once that process has
// everything.
func (s *Server) serveSuccessor(ctx context.Context, w wire) bool {
	defer w.conn.Close()
	defer context.AfterFunc(ctx, func() { w.conn.Close() })()
	pid, err := checkPeer(w.conn)
	if err == nil {
		err = s.giveListeners(w)
	}
	if err == nil {
		_, _, err = w.receive(time.Minute, "go") // the new process checks its backends first
	}
	if err != nil {
		s.log.Warn("a new process did not take over", "pid", pid, "err", err)
		return false
	}
	s.handover.now.Store(true)
	defer s.handover.now.Store(false)
	s.setHandingOver(true)
	if s.o.OnSuccessor != nil {
		s.o.OnSuccessor(pid)
	}
	if err = s.givePairs(w); err == nil {
		err = w.send(frame{Kind: "done"})
	}
	if err != nil {
		s.log.Error("hand-over failed, continuing", "pid", pid, "err", err)
		s.setHandingOver(false)
		if s.o.OnSuccessor != nil {
			s.o.OnSuccessor(os.Getpid())
		}
		return false
	}
	s.log.Info("handed over", "pid", pid, "connections", s.handover.given.Load(), "longest-pause", s.handover.pause())
	return true
}

// setHandingOver stops all loops from accepting while a new process takes over, also a
// loop that joins meanwhile because of the extra work. After a failed hand-over it makes
// them accept again.
func (s *Server) setHandingOver(on bool) {
	for _, l := range s.loops {
		l.call(func() {
			l.handingOver = on
			if on {
				l.stopAccepting()
			} else {
				l.startAccepting()
			}
		})
	}
}

func (s *Server) giveListeners(w wire) error {
	f, _, err := w.receive(frameTimeout, "hello")
	if err != nil {
		return err
	}
	s.log.Info("a new process is about to take over", "pid", f.PID, "version", f.Version)
	reply := frame{Kind: "listeners", Version: upgradeVersion, PID: os.Getpid()}
	var fds []int
	s.changing.Lock() // until the sockets are sent, or a reload may close them
	defer s.changing.Unlock()
	for _, l := range s.listeners {
		fds = append(fds, int(l.fd))
		reply.Addresses = append(reply.Addresses, l.address)
		if l.service {
			reply.Service = append(reply.Service, l.address)
		}
	}
	return w.send(reply, fds...)
}

// givePairs hands over all connections, a frame at a time, including those already
// accepted but still on their way to a loop.
func (s *Server) givePairs(w wire) error {
	for moved := time.Now(); ; {
		sent := false
		for _, l := range s.loops {
			n, err := s.giveSome(w, l)
			if err != nil {
				return err
			}
			sent = sent || n > 0
		}
		switch {
		case sent:
			moved = time.Now()
		case s.active.Load() == 0:
			return nil
		case time.Since(moved) > frameTimeout:
			return fmt.Errorf("%d connections belong to no loop", s.active.Load())
		default:
			time.Sleep(time.Millisecond)
		}
	}
}

func (s *Server) giveSome(w wire, l *loop) (int, error) {
	begun := time.Now()
	var all []*pair
	if !l.call(func() { all = l.detachPairs(pairsPerFrame, anyPair) }) || len(all) == 0 {
		return 0, nil
	}
	f, fds := s.frameOf(all)
	if err := w.exchange(f, fds); err != nil {
		l.post(func() {
			for _, p := range all {
				l.attach(p)
			}
		})
		s.handover.lost.Add(uint64(len(all)))
		return 0, err
	}
	l.post(func() { // only copies are closed: the connections live on
		for _, fd := range fds {
			l.closing = append(l.closing, int32(fd))
		}
	})
	for _, p := range all {
		s.sources.leave(p)
		s.active.Add(-1)
		p.listener.active.Add(-1)
		if p.phase == relaying {
			p.backend.active.Add(-1)
		}
	}
	s.handover.given.Add(uint64(len(all)))
	s.handover.longest.Store(max(s.handover.longest.Load(), int64(time.Since(begun))))
	return len(all), nil
}

// exchange sends connections and waits for the other process to acknowledge them. Both
// must reach the same result: a late acknowledgement either still arrives or can no
// longer be sent (unix(7): EPIPE).
func (w wire) exchange(f frame, fds []int) error {
	err := w.send(f, fds...)
	if err != nil {
		return err
	}
	if _, _, err = w.receive(frameTimeout, "ack"); err != nil {
		w.conn.CloseRead()
		if _, _, late := w.receive(frameTimeout, "ack"); late == nil {
			return nil
		}
	}
	return err
}

func (s *Server) frameOf(all []*pair) (f frame, fds []int) {
	f.Kind = "pairs"
	for _, p := range all {
		h := handed{
			Listener: p.listener.address, Peer: p.peer, Age: time.Duration(s.clock() - p.born), Up: p.up, Down: p.down,
			Client: handedEnd{EOF: p.client.eof, Shut: p.client.shut, Out: p.client.out},
		}
		fds = append(fds, int(p.client.fd))
		if p.phase == relaying {
			h.Backend = p.backend.name
			h.Server = handedEnd{EOF: p.server.eof, Shut: p.server.shut, Out: p.server.out}
			fds = append(fds, int(p.server.fd))
		} else {
			h.Server.Out, h.Headless = p.first, p.headless
		}
		if p.proxied != nil {
			h.Via, h.To = p.proxied.via, p.proxied.to
		}
		f.Pairs = append(f.Pairs, h)
	}
	return f, fds
}
