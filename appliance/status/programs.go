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

// Program is one of the programs in this process, with the series that are its own.
type Program struct {
	Name     string // of the path below /metrics/
	Gatherer prometheus.Gatherer
}

// What a scraper may take of the process. A scrape that has its place keeps it
// until its answer is written, or its time is up.
const (
	maxScrapes    = 4 // of one path at one time; more are told to come back
	scrapeTimeout = 9 * time.Second
)

// exposition serves what g gathers: OpenMetrics, protobuf or text, compressed, as
// the client likes.
func exposition(g prometheus.Gatherer, log *slog.Logger) http.Handler {
	return limit(maxScrapes, promhttp.HandlerFor(g, promhttp.HandlerOpts{
		EnableOpenMetrics: true,
		Timeout:           scrapeTimeout,
		// A collector that fails costs its own series, not everybody's.
		ErrorHandling: promhttp.ContinueOnError,
		ErrorLog:      errorLog{log},
	}))
}

// errorLog takes what promhttp says.
type errorLog struct{ log *slog.Logger }

// Println implements promhttp.Logger.
func (l errorLog) Println(v ...any) {
	l.log.Warn("scrape", "err", text.Line(strings.TrimSpace(fmt.Sprintln(v...))))
}

// limit turns away who comes while n requests are being answered, so that slow
// clients hold on to n answers and no more.
func limit(n int, h http.Handler) http.Handler {
	places := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
			h.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "10")
			http.Error(w, fmt.Sprintf("%d requests for this are being answered; come back later", n), http.StatusServiceUnavailable)
		}
	})
}

// unknown answers requests for what is not there with what is.
func unknown(paths []string) http.HandlerFunc {
	list := strings.Join(paths, "\n") + "\n"
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, "not found: %.100q; there are:\n", r.URL.Path)
		io.WriteString(w, list)
	}
}

// addProfiles serves net/http/pprof. Its own registration, on the default mux,
// is never served.
func addProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}
