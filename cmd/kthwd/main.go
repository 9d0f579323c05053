// kthwd runs the Kubernetes control plane "the hard way" as one daemon, or the
// load balancer in front of several.
//
// Package appliance has the control plane, package lb the load balancer. This
// package has the command line, the text for people, signals and exit codes: 0 asked
// to stop, 1 failed, 2 wrong usage or configuration.
package main

import (
	"context"
	"io"
	"os"
	"regexp"
	"sync"
	"time"

	"kthwd/appliance/byname"
	"kthwd/appliance/logging"
	"kthwd/appliance/names"
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
	exit     func(code int) // called at the second signal too; does not return
	notify   *notifier
	inherits inheritance
	started  time.Time
	args     []string // command line without the name of the program
	called   string   // with which a person runs the program here; empty means kthwd

	commandOnce sync.Once
	command     *regexp.Regexp // see ownCommand

	catchStderr func(*logging.Logs) error // for a controller; nil in a test, which owns os.Stderr
}

func main() {
	// These programs end the process themselves, and some only so: as their own mains do, this one
	// has nothing else to do by then. NOTIFY_SOCKET and LISTEN_FDS stay theirs.
	if call := names.Of(os.Args); call.Name != "" {
		os.Exit(runProgram(call))
	}
	own := *os.Stderr // keeps writing there after catchStderr
	a := &app{out: os.Stdout, err: &own, exit: os.Exit, notify: takeNotifier(), inherits: takeInheritance(), started: time.Now(), called: calledAs(os.Args[0]), catchStderr: upstream.CatchStderr}
	a.exit(a.run(context.Background(), os.Args[1:]))
}

// runProgram runs one of upstream's programs and returns its exit code.
func runProgram(call names.Call) (code int) {
	if call.Find {
		a := &app{out: os.Stdout, err: os.Stderr, called: calledAs(os.Args[0]), args: os.Args[1:]}
		if err := a.findKubeconfig(call); err != nil {
			return a.report(err)
		}
	}
	return byname.Run(call.Name, call.Args)
}

// run executes a command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) (code int) {
	a.args = args
	root := a.newRoot()
	root.SetArgs(args)
	return a.report(root.ExecuteContext(ctx))
}
