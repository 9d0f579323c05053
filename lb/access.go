package lb

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"
)

// accessLog writes one JSON line for each ended connection. A loop never waits for
// the disk: when the writer falls behind, lines are dropped and counted.
type accessLog struct {
	file  *os.File
	lines chan accessLine
	lost  func() // is called for each line, or buffer of lines, that is not written
	done  chan struct{}
}

type accessLine struct {
	at       time.Time
	client   string
	via      string // the proxy that the client is behind
	listener string
	backend  string
	up, down uint64
	lasted   time.Duration
	why      endReason
}

const accessBacklog = 4096

func openAccessLog(path string, lost func()) (*accessLog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	a := &accessLog{file: f, lines: make(chan accessLine, accessBacklog), lost: lost, done: make(chan struct{})}
	go a.run()
	return a, nil
}

func (a *accessLog) add(p *pair, why endReason, lasted time.Duration) {
	line := accessLine{
		at: time.Now(), client: p.peer.String(), listener: p.listener.address,
		up: p.up, down: p.down, lasted: lasted, why: why,
	}
	if p.proxied != nil {
		line.via = p.proxied.via.String()
	}
	if p.backend != nil {
		line.backend = p.backend.name
	}
	select {
	case a.lines <- line:
	default:
		a.lost()
	}
}

func (a *accessLog) run() {
	defer close(a.done)
	defer a.file.Close()
	w := bufio.NewWriterSize(a.file, 64<<10)
	h := slog.NewJSONHandler(w, &slog.HandlerOptions{ReplaceAttr: withoutLevel})
	for line := range a.lines {
		line.write(h)
		if len(a.lines) == 0 {
			a.flush(w)
		}
	}
	a.flush(w)
}

// flush writes the buffer, or drops and counts it when the disk is full.
func (a *accessLog) flush(w *bufio.Writer) {
	if w.Flush() != nil {
		a.lost()
		w.Reset(a.file)
	}
}

func (l accessLine) write(h slog.Handler) {
	r := slog.NewRecord(l.at, slog.LevelInfo, "connection", 0)
	r.Add("client", l.client, "listener", l.listener, "backend", l.backend, "received", l.up, "sent", l.down, "seconds", l.lasted.Seconds(), "end", endNames[l.why])
	if l.via != "" {
		r.Add("proxy", l.via)
	}
	_ = h.Handle(context.Background(), r) // the buffer remembers an error; see flush
}

func withoutLevel(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.LevelKey || a.Key == slog.MessageKey {
		return slog.Attr{}
	}
	return a
}

// close writes the remaining lines. No line may be added afterwards.
func (a *accessLog) close() {
	close(a.lines)
	<-a.done
}

// openAccessLog opens the file before there are loops.
func (s *Server) openAccessLog() error {
	retire, err := s.reopenAccessLog(s.cfg.Load().AccessLog)
	retire()
	return err
}

// reopenAccessLog opens the file again, so that a reload rotates it. The caller calls retire, which
// closes the old file once the loops have finished with it. It blocks until they run, so
// the caller must not hold a lock that Run takes before it starts them.
func (s *Server) reopenAccessLog(path string) (retire func(), err error) {
	var fresh *accessLog
	if path != "" {
		var err error
		if fresh, err = openAccessLog(path, s.accessLost); err != nil {
			return func() {}, &Problem{Field: "AccessLog", Text: fmt.Sprint(errors.Unwrap(err), ": ", path), Hint: "the user kthwd runs as must be able to write it"}
		}
	}
	s.mu.Lock()
	loops := s.loops
	s.mu.Unlock()
	old := s.access.Swap(fresh)
	if old == nil {
		return func() {}, nil
	}
	return func() {
		// A loop may be adding a line; it has finished once it has run this.
		for _, l := range loops {
			l.call(func() {})
		}
		old.close()
	}, nil
}

func (s *Server) closeAccessLog() {
	if old := s.access.Swap(nil); old != nil {
		old.close() // the loops have stopped
	}
}

// accessLost counts a line that was not written.
func (s *Server) accessLost() {
	s.accessDropped.Add(1)
	s.reach(limitAccessLog)
}
