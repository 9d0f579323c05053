package main

import (
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

// notifier reports the state of the process to systemd (sd_notify(3)). A nil notifier
// does nothing.
//
// It removes NOTIFY_SOCKET from the environment, because the embedded API server would
// use it to report READY=1 for the whole process when only the API server is ready
// (k8s.io/apiserver/pkg/server/genericapiserver.go).
type notifier struct {
	path     string
	conn     *net.UnixConn
	watchdog time.Duration // systemd expects a sign of life within this time; 0 for no limit
	once     sync.Once
	up       chan struct{} // closed at the first ready
}

// takeNotifier must be called before anything else reads the environment.
func takeNotifier() *notifier {
	path, watchdog := os.Getenv("NOTIFY_SOCKET"), watchdogLimit()
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name)
	}
	if path == "" {
		return nil
	}
	// Both systemd and package net take a name that begins with @ for an abstract one.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil // no supervisor listens
	}
	return &notifier{path: path, conn: conn, watchdog: watchdog, up: make(chan struct{})}
}

// watchdogLimit is the result that sd_watchdog_enabled(3) would give.
func watchdogLimit() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	usec, err := strconv.ParseUint(os.Getenv("WATCHDOG_USEC"), 10, 63)
	if err != nil || usec > uint64(math.MaxInt64/time.Microsecond) {
		return 0
	}
	return time.Duration(usec) * time.Microsecond
}

// ready reports that all components are ready.
func (n *notifier) ready() {
	n.send("READY=1", "STATUS=ready")
	if n != nil {
		n.once.Do(func() { close(n.up) })
	}
}

// feed reports that the process is alive.
func (n *notifier) feed() { n.send("WATCHDOG=1") }

// stopping reports that the process has begun to stop.
func (n *notifier) stopping() { n.send("STOPPING=1", "STATUS=stopping") }

// reloading reports that the configuration is being read again; reloaded must follow.
func (n *notifier) reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
		n.send("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
	}
}

// reloaded reports that the configuration was read, whether it was applied or not.
func (n *notifier) reloaded() { n.send("READY=1") }

// extend requests time: the current phase, such as the stop, may take as long as d.
func (n *notifier) extend(d time.Duration) {
	n.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}

// mainPID names the main process of the service from now on.
func (n *notifier) mainPID(pid int) { n.send(fmt.Sprintf("MAINPID=%d", pid)) }

// environment has the variables with which another process can notify systemd, too.
func (n *notifier) environment() []string {
	if n == nil {
		return nil
	}
	environment := []string{"NOTIFY_SOCKET=" + n.path}
	if n.watchdog > 0 {
		environment = append(environment, fmt.Sprintf("WATCHDOG_USEC=%d", n.watchdog.Microseconds()))
	}
	return environment
}

// status sets the line that systemctl status shows.
func (n *notifier) status(state string) { n.send("STATUS=" + text.Joined(state)) }

// failed sets that line to the reason why the process ends.
func (n *notifier) failed(errs []error) {
	state := "error: " + errs[0].Error()
	if more := len(errs) - 1; more > 0 {
		state += fmt.Sprintf(" (and %d more)", more)
	}
	if hint := cli.HintFor(errs[0]); hint != "" {
		state += "; hint: " + hint
	}
	n.status(state)
}

func (n *notifier) send(states ...string) {
	if n != nil {
		n.conn.Write([]byte(strings.Join(states, "\n"))) // systemd may be gone; that changes nothing here
	}
}
