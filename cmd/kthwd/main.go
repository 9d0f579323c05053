// kthwd runs the Kubernetes control plane "the hard way" as one daemon, or the
// load balancer in front of several.
//
// The control plane is in package appliance, the load balancer in lb; here are the command line, the words a
// person reads, signals and exit codes: 0 asked to stop, 1 failed, 2 wrong
// usage or configuration.
package main

import (
	"context"
	"io"
	"os"
	"time"

	"kthwd/appliance/logging"
	"kthwd/appliance/upstream"
)

// Set by the Makefile, with the versions of Kubernetes; see version.Linked.
var (
	version = "unknown"
	commit  = "unknown"
)

// app is one run of the program.
type app struct {
	out, err io.Writer
	exit     func(code int) // at the second signal; it does not return
	notify   *notifier
	inherits inheritance
	started  time.Time
	args     []string // of the command line, without the program

	catchStderr func(*logging.Logs) error // of a controller; nil where os.Stderr is a test's
}

func main() {
	own := *os.Stderr // goes on when the other one is caught
	a := &app{out: os.Stdout, err: &own, exit: os.Exit, notify: takeNotifier(), inherits: takeInheritance(), started: time.Now(), catchStderr: upstream.CatchStderr}
	a.exit(a.run(context.Background(), os.Args[1:]))
}

// run does what args say and returns the exit code.
func (a *app) run(ctx context.Context, args []string) (code int) {
	a.args = args
	root := a.newRoot()
	root.SetArgs(args)
	return a.report(root.ExecuteContext(ctx))
}
