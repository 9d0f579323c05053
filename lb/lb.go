// Package lb is a TCP load balancer for kube-apiservers.
package lb

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/inetaf/tcpproxy"
	"github.com/prometheus/client_golang/prometheus"
)

var _ tcpproxy.Target

// Options are what the caller of New provides. The zero value logs nothing.
type Options struct {
	Log *slog.Logger
	// Sockets are listening sockets that the service manager has opened. Those
	// whose address is one of Config.Listen are used, and all are closed.
	Sockets []*os.File
	// TakeOver has Run take the listeners and the connections of the process that
	// runs with the same Config.Listen, or UpgradeSocket. Without one it fails.
	TakeOver bool
	// OnSuccessor is called when a new process is about to take over, with its
	// process number, so that the service manager can be told; and with this
	// process' own, should that break off. May be nil.
	OnSuccessor func(pid int)
}

// ErrHandedOver is returned by Run when a new process has taken everything over.
var ErrHandedOver = errors.New("handed over to a new process")

// Server is a load balancer. Make one with New and Run it once.
type Server struct{}

// New reads the files that cfg names and makes a Server. It opens no socket. The
// error joins all that is wrong.
func New(cfg Config, o Options) (*Server, error) { return nil, errors.New("not built yet") }

// Name implements supervise.Component.
func (s *Server) Name() string { return "lb" }

// Run implements supervise.Component: it takes over from a running process or
// opens the listeners, calls ready, and balances until ctx ends and the drain is
// over. It returns ErrHandedOver when a new process took over.
func (s *Server) Run(ctx context.Context, ready func()) error { return errors.New("not built yet") }

// Reload puts a new configuration in place; no connection is closed by it. What
// cannot change at run time (Listen, UpgradeSocket) must be as it was. On an
// error nothing has changed.
func (s *Server) Reload(cfg Config) error { return errors.New("not built yet") }

// SetDiscovered replaces the backends that discovery has found. They are used
// beside the static ones until the first list that is not empty, then instead.
func (s *Server) SetDiscovered(backends []string) error { return errors.New("not built yet") }

// Collector gives the kthwd_lb_* series.
func (s *Server) Collector() prometheus.Collector { return nil }

// Status is a copy of what is known at this moment.
func (s *Server) Status() Status { return Status{} }

// Status is the state of a load balancer, for people and programs.
type Status struct {
	Ready    bool             `json:"ready"`            // accepting, and not about to stop
	Reason   string           `json:"reason,omitempty"` // why not, one line
	FailOpen bool             `json:"failOpen"`         // no backend is ready, so any is used
	Held     int              `json:"held"`             // clients that wait for a backend
	Listen   []ListenerStatus `json:"listeners"`
	Backends []BackendStatus  `json:"backends"`
	Verified bool             `json:"verified"` // checks verify certificates
	Check    string           `json:"check"`
}

// ListenerStatus is one listening address.
type ListenerStatus struct {
	Address  string `json:"address"`
	Active   int    `json:"active"`
	Accepted uint64 `json:"accepted"`
	Rejected uint64 `json:"rejected"`
}

// BackendStatus is one backend.
type BackendStatus struct {
	Address   string    `json:"address"`            // as configured
	Resolved  string    `json:"resolved,omitempty"` // where connections go, when Address is a name
	State     string    `json:"state"`              // unknown, ready, slow_start, not_ready, dead, draining
	Since     time.Time `json:"since"`
	Reason    string    `json:"reason,omitempty"`    // of the last change: "bad_cert: x509: …"
	LastCheck string    `json:"lastCheck,omitempty"` // ok, not_ready, connect_error, tls_error, timeout, bad_status, bad_cert
	Active    int       `json:"active"`
	Total     uint64    `json:"total"`
	Errors    uint64    `json:"connectErrors"`
	Source    string    `json:"source"` // "static" or "discovered"
}
