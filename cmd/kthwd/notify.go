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
)

// notifier tells systemd how the process is (sd_notify(3)). A nil notifier tells
// nobody.
//
// It takes NOTIFY_SOCKET out of the environment, for the embedded API server
// would use it to say READY=1 for the whole process, when it alone is ready
// (k8s.io/apiserver/pkg/server/genericapiserver.go).
type notifier struct {
	path     string
	conn     *net.UnixConn
	watchdog time.Duration // systemd wants to hear from the process that often; 0 for never
	once     sync.Once
	up       chan struct{} // closed at the first ready
}

// takeNotifier must be called before anything else looks at the environment.
func takeNotifier() *notifier {
	path, watchdog := os.Getenv("NOTIFY_SOCKET"), watchdogLimit()
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name)
	}
	if path == "" {
		return nil
	}
	// A name that begins with @ is an abstract one, to systemd as to package net.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil // a supervisor that does not listen is none
	}
	return &notifier{path: path, conn: conn, watchdog: watchdog, up: make(chan struct{})}
}

// watchdogLimit is what sd_watchdog_enabled(3) would say.
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

// ready says that everything is.
func (n *notifier) ready() {
	n.send("READY=1", "STATUS=ready")
	if n != nil {
		n.once.Do(func() { close(n.up) })
	}
}

// feed says that the process is alive.
func (n *notifier) feed() { n.send("WATCHDOG=1") }

// stopping says that the process has begun to stop.
func (n *notifier) stopping() { n.send("STOPPING=1", "STATUS=stopping") }

// reloading says that the configuration is being read again; reloaded must follow.
func (n *notifier) reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
		n.send("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
	}
}

// reloaded says that the configuration was read, whether it was taken or not.
func (n *notifier) reloaded() { n.send("READY=1") }

// extend asks for time: what is going on, such as the stop, may take so long.
func (n *notifier) extend(d time.Duration) {
	n.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}

// mainPID says which process is the service from now on.
func (n *notifier) mainPID(pid int) { n.send(fmt.Sprintf("MAINPID=%d", pid)) }

// environment is what another process needs to tell systemd, too.
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

// status is the line that systemctl status shows.
func (n *notifier) status(state string) { n.send("STATUS=" + text.Joined(state)) }

// failed leaves in that line why the process ends.
func (n *notifier) failed(errs []error) {
	state := "error: " + errs[0].Error()
	if more := len(errs) - 1; more > 0 {
		state += fmt.Sprintf(" (and %d more)", more)
	}
	if hint := hintFor(errs[0]); hint != "" {
		state += "; hint: " + hint
	}
	n.status(state)
}

func (n *notifier) send(states ...string) {
	if n != nil {
		n.conn.Write([]byte(strings.Join(states, "\n"))) // systemd may be gone; that changes nothing here
	}
}
