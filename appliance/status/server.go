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
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/logging"
)

// ServerConfig is what a Server is made of.
type ServerConfig struct {
	Socket  string        // unix socket; "" for none
	Address string        // the metrics address; "" for none
	Report  func() Report // the state at this moment
	Logs    *logging.Logs // whose levels are shown and changed

	// Collectors give further series, beside those of the report, of Go and of
	// the process.
	Collectors []prometheus.Collector

	// Shared tells whether the process that answers at Address is one that this
	// one takes over from: the two then listen beside each other for that moment.
	// Nil means that nobody is, and that nobody can take over later.
	Shared func(Report) bool
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
	metrics http.Handler
	log     *slog.Logger
}

// NewServer makes a Server. It opens nothing.
func NewServer(c ServerConfig) *Server {
	return &Server{ServerConfig: c, metrics: metricsHandler(c.Report, c.Collectors), log: c.Logs.Logger("status")}
}

// Name implements supervise.Component.
func (s *Server) Name() string { return "status" }

// Run implements supervise.Component.
func (s *Server) Run(ctx context.Context, ready func()) error {
	var servers []*http.Server
	var listeners []net.Listener
	if s.Socket != "" {
		if err := os.Remove(s.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		unix, err := net.Listen("unix", s.Socket)
		if err != nil {
			return err
		}
		servers, listeners = append(servers, newHTTPServer(s.private())), append(listeners, unix)
	}
	if s.Address != "" {
		tcp, err := s.listen(ctx)
		if err != nil {
			for _, l := range listeners {
				err = errors.Join(err, l.Close())
			}
			return err
		}
		servers, listeners = append(servers, newHTTPServer(s.public())), append(listeners, tcp)
	}
	ready()
	s.hold(ctx)
	return serveAll(ctx, servers, listeners)
}

// soReusePort is SO_REUSEPORT of Linux, which package syscall lacks on some
// architectures.
const soReusePort = 15

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	var c net.ListenConfig
	if s.Shared != nil {
		asking, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if r, err := (Client{Addr: s.Address}).Status(asking); err == nil && !s.Shared(r) {
			return nil, fmt.Errorf("listen tcp %s: process %d, another kthwd: %w", s.Address, r.PID, syscall.EADDRINUSE)
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

// serveAll serves until ctx ends or a server fails, and leaves none running.
func serveAll(ctx context.Context, servers []*http.Server, listeners []net.Listener) error {
	done := make(chan error, len(servers)+1)
	for i, s := range servers {
		go func() { done <- s.Serve(listeners[i]) }()
	}
	var failed error
	select {
	case failed = <-done:
		done <- failed
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, s := range servers {
		if s.Shutdown(stop) != nil {
			s.Close()
		}
	}
	for range servers {
		<-done
	}
	return failed
}

// newHTTPServer bounds what a client can hold on to.
func newHTTPServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
}

// public is what anybody may read.
func (s *Server) public() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", s.status)
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.Handle("GET /metrics", s.metrics)
	return mux
}

// private adds what only the owner of the socket's directory may do.
func (s *Server) private() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.public())
	mux.HandleFunc("GET /log-level", s.levels)
	mux.HandleFunc("PUT /log-level", s.setLevels)
	return mux
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(s.Report()) // the client has gone; there is nobody to tell
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
