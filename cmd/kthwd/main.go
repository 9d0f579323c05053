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
	"time"

	"kthwd/appliance/byname"
	"kthwd/appliance/early"
	"kthwd/appliance/logging"
	"kthwd/appliance/names"
	"kthwd/appliance/upstream"
	"kthwd/cmd/kthwd/cli"
)

// app is one run of the program.
type app struct {
	*cli.App

	exit     func(code int) // called at the second signal too; does not return
	notify   *notifier
	inherits inheritance
	started  time.Time

	catchStderr func(*logging.Logs) error // for a controller; nil in a test, which owns os.Stderr
}

// newApp makes a run whose words go to out and err.
func newApp(out, err io.Writer) *app {
	a := &app{App: &cli.App{Out: out, Err: err}}
	a.Verbs = func() []string { return cli.Verbs(newApp(io.Discard, io.Discard).newRoot()) }
	a.OnError = func(all []error) { a.notify.failed(all) }
	return a
}

func main() {
	early.Main()
	// These programs end the process themselves, and some only so: as their own mains do, this one
	// has nothing else to do by then. NOTIFY_SOCKET and LISTEN_FDS stay theirs.
	if call := names.Of(os.Args); call.Name != "" {
		os.Exit(runProgram(call))
	}
	own := *os.Stderr // keeps writing there after catchStderr
	a := newApp(os.Stdout, &own)
	a.exit, a.notify, a.inherits, a.started, a.catchStderr = os.Exit, takeNotifier(), takeInheritance(), time.Now(), upstream.CatchStderr
	a.Called = cli.CalledAs(os.Args[0])
	a.exit(a.run(context.Background(), os.Args[1:]))
}

// runProgram runs one of upstream's programs and returns its exit code.
func runProgram(call names.Call) (code int) {
	if call.Find {
		a := newApp(os.Stdout, os.Stderr)
		a.Called, a.Args = cli.CalledAs(os.Args[0]), os.Args[1:]
		if err := a.findKubeconfig(call); err != nil {
			return a.Report(err)
		}
	}
	return byname.Run(call.Name, call.Args)
}

// run executes a command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) (code int) {
	a.Args = args
	root := a.newRoot()
	root.SetArgs(args)
	return a.Report(root.ExecuteContext(ctx))
}
