package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/logging"
	"kthwd/appliance/text"
)

// ServerConfig is what a Server is made of.
type ServerConfig struct {
	Socket  string                 // unix socket; "" for none
	Address string                 // the metrics address; "" for none
	Web     string                 // web configuration file of the metrics address; "" is plain HTTP
	Pprof   bool                   // profiles at the metrics address
	Report  func() Report          // the state at this moment
	Changed func() <-chan struct{} // closed at the next change of the state record; nil looks every few seconds
	OnEvent func(Event)            // told of each change that is seen; may be nil
	Logs    *logging.Logs          // whose levels are shown and changed

	// Collectors give further series, beside those of the report, of Go and of
	// the process.
	Collectors []prometheus.Collector
	// Programs have their series at paths of their own.
	Programs []Program

	// Private are further patterns of the unix socket, which only the owner of its
	// directory can ask; see http.ServeMux. An error answers with Refuse.
	Private map[string]http.HandlerFunc

	// Shared tells whether the process that answers at Address is one that this
	// one takes over from: the two then listen beside each other for that moment.
	// Nil means that nobody is, and that nobody can take over later.
	Shared func(Report) bool
	// TakeOver has it listen beside whoever is there when that one cannot be
	// asked, since it wants a certificate.
	TakeOver bool
	// Hold has the Server open its listeners at once and answer when Hold is
	// closed, or after two seconds, so that nobody is told "not ready" by a
	// process that takes over from one that is. Nil answers at once.
	Hold <-chan struct{}
}

// Server answers questions about this process: on the unix socket, for the owner
// of its directory, who may also change log levels; and on the metrics address,
// for everybody, read only. Make one with NewServer and Run it once.
type Server struct {
	ServerConfig
	log     *slog.Logger
	public  http.Handler
	paths   []string // beside the page
	watcher watcher
}

// NewServer makes a Server. It opens nothing.
func NewServer(c ServerConfig) *Server {
	s := &Server{ServerConfig: c, log: c.Logs.Logger("status")}
	s.public = s.newPublic()
	return s
}

// Name implements supervise.Component.
func (s *Server) Name() string { return "status" }

// Run implements supervise.Component.
func (s *Server) Run(ctx context.Context, ready func()) error {
	var all []serving
	if s.Socket != "" {
		if err := os.Remove(s.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		unix, remove, err := listenUnix(s.Socket)
		if err != nil {
			return err
		}
		defer remove()
		all = append(all, serving{server: s.newHTTPServer(s.private()), listener: unix})
	}
	if s.Address != "" {
		tcp, err := s.listen(ctx)
		if err != nil {
			for _, a := range all {
				err = errors.Join(err, a.listener.Close())
			}
			return err
		}
		all = append(all, serving{s.newHTTPServer(s.public), tcp, s.Web})
	}
	watching, stopWatching := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { s.watcher.watch(watching, s.Report, s.Changed, s.OnEvent) })
	defer watch.Wait()
	defer stopWatching()
	ready()
	s.hold(ctx)
	return s.serveAll(ctx, all)
}

// listenUnix also returns what removes the socket in the end, unless it is
// another process's by then, which has taken over.
func listenUnix(path string) (_ net.Listener, remove func(), err error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	ours, err := os.Stat(path)
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, func() {
		if there, err := os.Stat(path); err == nil && os.SameFile(ours, there) {
			os.Remove(path)
		}
	}, nil
}

// soReusePort is SO_REUSEPORT of Linux, which package syscall lacks on some
// architectures.
const soReusePort = 15

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	var c net.ListenConfig
	if s.Shared != nil {
		asking, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		r, err := Client{Addr: s.Address}.Status(asking)
		switch {
		case err == nil && !s.Shared(r):
			return nil, fmt.Errorf("listen tcp %s: process %d, another kthwd: %w", s.Address, r.PID, syscall.EADDRINUSE)
		case err != nil && !s.TakeOver && !errors.Is(err, ErrNotRunning): // TLS, perhaps; the kernel would let both listen
			return nil, fmt.Errorf("listen tcp %s: %w", s.Address, syscall.EADDRINUSE)
		}
		c.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			return errors.Join(raw.Control(func(fd uintptr) {
				err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, soReusePort, 1)
			}), err)
		}
	}
	return c.Listen(ctx, "tcp", s.Address)
}

func (s *Server) hold(ctx context.Context) {
	if s.Hold == nil {
		return
	}
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	select {
	case <-s.Hold:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// serving is a server with its listener, and the web configuration file between
// the two.
type serving struct {
	server   *http.Server
	listener net.Listener
	web      string
}

// serveAll serves until ctx ends or a server fails, and leaves none running.
func (s *Server) serveAll(ctx context.Context, all []serving) error {
	done := make(chan error, len(all)+1)
	for _, a := range all {
		go func() { done <- serveWeb(a.server, a.listener, a.web, s.log) }()
	}
	var failed error
	select {
	case failed = <-done:
		done <- failed
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, a := range all {
		if a.server.Shutdown(stop) != nil {
			a.server.Close()
		}
		a.listener.Close() // when it failed before it served
	}
	for range all {
		<-done
	}
	return failed
}

// newHTTPServer bounds what a client can hold on to.
func (s *Server) newHTTPServer(h http.Handler) *http.Server {
	write := 30 * time.Second
	if s.Pprof {
		write = 2 * time.Minute // a profile takes 30 s when nobody says how long
	}
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: write, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		// Clients without the right certificate, and such.
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// newPublic is what whoever reaches the metrics address may read.
func (s *Server) newPublic() http.Handler {
	mux := http.NewServeMux()
	paths := []string{"/", "/livez", "/readyz", "/status", "/status.json", "/metrics"}
	mux.HandleFunc("GET /status", s.status)
	mux.HandleFunc("GET /status.json", s.status)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.Handle("GET /metrics", exposition(ownSeries(s.ServerConfig, s.report), s.log))
	for _, p := range s.Programs {
		mux.Handle("GET /metrics/"+p.Name, exposition(p.Gatherer, s.log))
		paths = append(paths, "/metrics/"+p.Name)
	}
	if s.Pprof {
		addProfiles(mux)
		paths = append(paths, "/debug/pprof/")
	}
	s.paths = paths[1:]
	mux.HandleFunc("GET /{$}", s.page)
	mux.Handle("/", unknown(paths))
	return mux
}

// private adds what only the owner of the socket's directory may do.
func (s *Server) private() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.public)
	mux.HandleFunc("GET /log-level", s.levels)
	mux.HandleFunc("PUT /log-level", s.setLevels)
	for pattern, handler := range s.ServerConfig.Private {
		mux.HandleFunc(pattern, handler)
	}
	return mux
}

// hintHeader carries what to do about an error.
const hintHeader = "Kthwd-Hint"

// Refuse answers a request of Client.Do with an error, and with its hint if it
// has one. Nothing secret may be in it.
func Refuse(w http.ResponseWriter, code int, err error) {
	var own interface{ Hint() string }
	if errors.As(err, &own) && own.Hint() != "" {
		w.Header().Set(hintHeader, text.Line(own.Hint()))
	}
	http.Error(w, err.Error(), code)
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(s.report(time.Now())) // the client has gone; there is nobody to tell
}

// report is the report with what is to be said of it.
func (s *Server) report(now time.Time) Report {
	r := s.Report()
	s.watcher.complete(&r, now)
	r.Health, r.Findings = Assess(r, now)
	return r
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if r := s.Report(); !r.Ready {
		http.Error(w, r.Reason, http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ok\n")
}

func (s *Server) levels(w http.ResponseWriter, _ *http.Request) {
	levels := s.Logs.Levels()
	names := make([]string, 0, len(levels))
	for name := range levels {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(w, "%s=%s\n", name, levels[name])
	}
}

// setLevels reads "component=level" lines: all of them are right, or none is taken.
func (s *Server) setLevels(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<10))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	lines := strings.Fields(string(body))
	for _, line := range lines {
		if _, _, err := logging.ParseLevel(line); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	for _, line := range lines {
		component, level, found := strings.Cut(line, "=")
		if !found {
			component, level = "", line
		}
		if err := s.Logs.SetLevel(component, level); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.log.Info("log level changed", "of", component, "level", level)
	}
	s.levels(w, r)
}
