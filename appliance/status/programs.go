package status

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"kthwd/appliance/text"
)

// Program is one of the programs in this process, with its own series.
type Program struct {
	Name     string // the path below /metrics/
	Gatherer prometheus.Gatherer
}

// The limits of scraping. A scrape counts as in flight until its answer is written
// or it times out.
const (
	maxScrapes    = 4 // scrapes of one path in flight; others are told to retry
	scrapeTimeout = 9 * time.Second
)

// exposition serves the series that g gathers, as OpenMetrics, protobuf or text, and
// compressed, as the client requests.
func exposition(g prometheus.Gatherer, log *slog.Logger) http.Handler {
	return limit(maxScrapes, promhttp.HandlerFor(g, promhttp.HandlerOpts{
		EnableOpenMetrics: true,
		Timeout:           scrapeTimeout,
		// A collector that fails loses its own series only.
		ErrorHandling: promhttp.ContinueOnError,
		ErrorLog:      errorLog{log},
	}))
}

// errorLog logs the errors of promhttp.
type errorLog struct{ log *slog.Logger }

// Println implements promhttp.Logger.
func (l errorLog) Println(v ...any) {
	l.log.Warn("scrape", "err", text.Line(strings.TrimSpace(fmt.Sprintln(v...))))
}

// limit rejects requests while n are in flight, so that slow clients hold at most n
// answers.
func limit(n int, h http.Handler) http.Handler {
	places := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
			h.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "10")
			http.Error(w, fmt.Sprintf("%d requests for this path are in flight; try again later", n), http.StatusServiceUnavailable)
		}
	})
}

// unknownPath begins the answer to a request for an unknown path.
const unknownPath = "not found: "

// unknown answers a request for an unknown path with the list of paths.
func unknown(paths []string) http.HandlerFunc {
	list := strings.Join(paths, "\n") + "\n"
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, unknownPath+"%.100q; the paths are:\n", r.URL.Path)
		io.WriteString(w, list)
	}
}

// addProfiles serves net/http/pprof. That package also registers itself on the
// default mux, which is never served.
func addProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}
