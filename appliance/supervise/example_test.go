package supervise_test

import (
	"context"
	"fmt"
	"log/slog"

	"kthwd/appliance/supervise"
)

// server is a typical component: it reports when it is ready, blocks until its context
// ends, and returns when everything has stopped.
type server string

func (s server) Name() string { return string(s) }

func (s server) Run(ctx context.Context, ready func()) error {
	fmt.Println(s, "starts")
	ready()
	<-ctx.Done()
	fmt.Println(s, "stops")
	return nil
}

// signal requests the stop as soon as it runs, as SIGTERM does.
type signal context.CancelFunc

func (s signal) Name() string { return "signal" }

func (s signal) Run(ctx context.Context, ready func()) error {
	ready()
	s()
	<-ctx.Done()
	return nil
}

func Example() {
	ctx, stop := context.WithCancel(context.Background())

	g := supervise.New(slog.New(slog.DiscardHandler))
	etcd := g.Add(server("etcd"))
	api := g.Add(server("kube-apiserver"), etcd)
	scheduler := g.Add(server("kube-scheduler"), api)
	g.Add(signal(stop), scheduler)

	fmt.Println("error:", g.Run(ctx))
	for _, s := range g.Status() {
		fmt.Println(s.Name, s.State)
	}
	// Output:
	// etcd starts
	// kube-apiserver starts
	// kube-scheduler starts
	// kube-scheduler stops
	// kube-apiserver stops
	// etcd stops
	// error: <nil>
	// etcd stopped
	// kube-apiserver stopped
	// kube-scheduler stopped
	// signal stopped
}
