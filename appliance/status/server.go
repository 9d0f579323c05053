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
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/advice"
	"kthwd/appliance/logging"
	"kthwd/appliance/paths"
	"kthwd/appliance/status/history"
	"kthwd/appliance/text"
)

// ServerConfig configures a Server.
type ServerConfig struct {
	Socket  string                 // unix socket; "" means none
	Address string                 // the metrics address; "" means none
	Web     string                 // web configuration file of the metrics address; "" means plain HTTP
	Pprof   bool                   // serve profiles at the metrics address
	Report  func() Report          // returns the present state
	Changed func() <-chan struct{} // returns a channel closed at the next change of the state record; nil means to poll only
	OnEvent func(Event)            // called with each observed change; may be nil
	Logs    *logging.Logs          // the log whose levels the Server shows and changes
	AsTyped func(string) string    // spells the commands in a remedy of the page as they are typed on this machine; nil leaves them

	// Others returns what is known of the other controllers of the cluster. It must not
	// block. Nil where no controller runs.
	Others func() []Controller

	// History adds measurements to those of the process and of a load balancer, whose last
	// hour the page shows.
	History []history.Source

	// Collectors add series to those of the report, of Go and of the process.
	Collectors []prometheus.Collector
	// Programs have their series at separate paths.
	Programs []Program

	// Private adds patterns, see http.ServeMux, to the unix socket, which only the
	// owner of its directory can open. Handlers answer errors with Refuse.
	Private map[string]http.HandlerFunc

	// Shared reports whether this process takes over from the process that answers
	// at Address with that Report. The two then listen side by side for a moment.
	// Nil means that no process shares Address, now or later.
	Shared func(Report) bool
	// TakeOver makes the Server listen beside a process at Address that it cannot
	// query because that process requires a certificate.
	TakeOver bool
	// Hold makes the Server open its listeners at once but answer only when Hold is
	// closed, or after two seconds. A client then gets no "not ready" from a process
	// that takes over from a ready one. Nil answers at once.
	Hold <-chan struct{}
}

// Server serves the state of this process: on the unix socket to the owner of its
// directory, who may also change log levels, and on the metrics address to every
// client, read-only. Make one with NewServer and Run it once.
type Server struct {
	ServerConfig
	log     *slog.Logger
	public  http.Handler
	paths   []string // other paths that the page lists
	watcher watcher
	begun   beginnings
	history *history.Recorder
}

// NewServer returns a Server. It opens no listener.
func NewServer(c ServerConfig) *Server {
	s := &Server{ServerConfig: c, log: c.Logs.Logger("status")}
	s.history = history.New(slices.Concat(c.History, []history.Source{history.Memory(), balancerHistory(s.watcher.lastLB)})...)
	s.public = s.newPublic()
	return s
}

// Name implements supervise.Component.
func (s *Server) Name() string { return "status" }

// Run implements supervise.Component.
func (s *Server) Run(ctx context.Context, ready func()) error {
	var all []serving
	if s.Socket != "" {
		if err := paths.RemoveSocket(s.Socket); err != nil {
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
		all = append(all, serving{s.newHTTPServer(ownHosts(s.Address, s.public)), tcp, s.Web})
	}
	watching, stopWatching := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		s.watcher.watch(watching, func() Report { return s.report(time.Now()) }, s.Changed, s.OnEvent, s.history.Sample)
	})
	defer watch.Wait()
	defer stopWatching()
	ready()
	s.hold(ctx)
	return s.serveAll(ctx, all)
}

// listenUnix also returns a function that removes the socket, unless the path then
// holds the socket of a process that has taken over.
func listenUnix(path string) (_ net.Listener, remove func(), err error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		name := path
		if dir, errDir := os.Readlink(filepath.Dir(path)); errDir == nil { // a path through /proc/self/fd
			name = filepath.Join(dir, filepath.Base(path))
		}
		return nil, nil, named(err, name)
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

// soReusePort is Linux's SO_REUSEPORT, which package syscall lacks on some
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
		case err != nil && !s.TakeOver && !errors.Is(err, ErrNotRunning): // perhaps it serves TLS; the kernel would let both listen
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

// serving is a server with its listener and its web configuration file.
type serving struct {
	server   *http.Server
	listener net.Listener
	web      string
}

// serveAll serves until ctx ends or a server fails, then stops all servers.
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

// newHTTPServer bounds the time and memory that a client can hold.
func (s *Server) newHTTPServer(h http.Handler) *http.Server {
	write := 30 * time.Second
	if s.Pprof {
		write = 2 * time.Minute // a profile takes 30 s by default
	}
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: write, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		// Such as a client without the right certificate.
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// newPublic returns the handler of all paths that every client of the metrics
// address may read.
func (s *Server) newPublic() http.Handler {
	mux := http.NewServeMux()
	paths := []string{"/", "/livez", "/readyz", "/status", "/status.json", "/status/cluster", "/status/history", "/metrics"}
	mux.HandleFunc("GET /status", s.status)
	mux.HandleFunc("GET /status.json", s.status)
	mux.HandleFunc("GET /status/cluster", s.clusterJSON)
	mux.HandleFunc("GET /status/history", s.historyJSON)
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

// private adds the paths that are for the owner of the socket's directory only.
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

// hintHeader carries the hint of an error.
const hintHeader = "Kthwd-Hint"

// Refuse answers a request of Client.Do with an error, and with its hint if it has
// one. Neither may hold a secret.
func Refuse(w http.ResponseWriter, code int, err error) {
	if hint, ok := advice.Of(err); ok && hint != "" {
		w.Header().Set(hintHeader, text.Line(hint))
	}
	http.Error(w, err.Error(), code)
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(s.report(time.Now())) // it fails only when the client has gone
}

// report returns the report with its rates, events and findings.
func (s *Server) report(now time.Time) Report {
	r := s.Report()
	s.watcher.complete(&r, now)
	r.Health, r.Findings = Assess(r, now)
	s.begun.complete(&r, now)
	return r
}

// readyz answers whether this process is ready. With the query "backends" it is so only
// while some backend of its load balancer can be given connections, for those who move an
// address from one load balancer to another.
func (s *Server) readyz(w http.ResponseWriter, request *http.Request) {
	r := s.Report()
	ready, reason := r.Ready, r.Reason
	if request.URL.Query().Has("backends") && ready && r.LB != nil && !r.LB.Serves {
		ready, reason = false, "lb: no backend can be given connections"
	}
	if !ready {
		http.Error(w, reason, http.StatusServiceUnavailable)
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

// setLevels reads "component=level" lines. It applies all of them or, when one is
// wrong, none.
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
