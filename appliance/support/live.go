// Package support makes the archive that a bug report needs, and serves the parts of it
// that only the running process has.
//
// Handlers are for the unix socket of the process, which only the owner of its directory
// can open. Write makes the archive. A Redactor takes secrets out of everything that goes
// into it: every secret that a data directory holds, in each form in which a log or a
// configuration may have it, and whatever looks like one.
package support

import (
	"encoding/json"
	"net/http"
	"runtime/pprof"

	"kthwd/appliance/config"
	"kthwd/appliance/explain"
	"kthwd/appliance/logging"
)

// Paths on the unix socket.
const (
	PathRunning    = "/running"
	PathLog        = "/log"
	PathGoroutines = "/goroutines"
)

// Running is the configuration of a running kthwd.
type Running struct {
	PID      int                 `json:"pid"`
	File     string              `json:"file,omitempty"`    // the configuration file; empty for none
	Problem  string              `json:"problem,omitempty"` // why a start with the file of now would fail
	Settings []config.Value      `json:"settings"`
	Programs map[string][]string `json:"programs,omitempty"` // the command lines of the embedded programs

	Explained []explain.Program `json:"explained,omitempty"` // the same, with the origin of each flag
}

// Handlers returns the handlers for a process with this log.
func Handlers(logs *logging.Logs, running func() Running) map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET " + PathRunning: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(running()) // it fails only when the client has gone
		},
		"GET " + PathLog: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(logs.Tail())
		},
		"GET " + PathGoroutines: func(w http.ResponseWriter, _ *http.Request) {
			_ = pprof.Lookup("goroutine").WriteTo(w, 1)
		},
	}
}
