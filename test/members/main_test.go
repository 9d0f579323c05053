// Package members tries what three controllers know of each other when the network between
// them is cut in single directions, or their addresses change. Each is a process in a
// network of its own with the real etcd member, membership and status, without Kubernetes'
// programs: it starts within a second.
package members

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/advice"
	"kthwd/appliance/agree"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/flagvalue"
	"kthwd/appliance/join"
	"kthwd/appliance/logging"
	"kthwd/appliance/member"
	"kthwd/appliance/membership"
	"kthwd/appliance/others"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/readdress"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/test/lbtest"
)

func TestMain(m *testing.M) {
	lbtest.Main(m, map[string]lbtest.Helper{"controller": runController, "address": runAddress, "join": runJoin})
}

// runAddress is kthwd member address: the configuration file args[0], the address args[1], and
// at-start.
func runAddress(args []string) error {
	err := readdressed(args)
	if hint, ok := advice.Of(err); ok {
		err = fmt.Errorf("%w; hint: %s", err, hint)
	}
	return err
}

func readdressed(args []string) error {
	if len(args) < 2 {
		return errors.New("want a configuration file and an address")
	}
	loader, err := load(args[0])
	if err != nil {
		return err
	}
	c, err := readdress.Begin(readdress.Options{
		Config: loader.Config.Controller, File: loader.File(), Address: args[1], AtStart: len(args) > 2,
		Say: func(line string) { fmt.Println(line) },
	})
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Run(context.Background())
}

// runJoin is kthwd join: the data directory args[0] and the token args[1].
func runJoin(args []string) error {
	if len(args) != 2 {
		return errors.New("want a data directory and a token")
	}
	loader := config.NewLoader()
	c := &loader.Config.Controller
	c.DataDir = args[0]
	_, err := join.Join(context.Background(), pki.Layout{Dir: args[0]}, join.Options{
		Token: args[1], Version: "v0.1.0-dev", Config: loader.Config, Say: func(line string) { fmt.Println(line) },
		Configure: func(f member.Files) (config.Controller, error) {
			c.Name, c.AdvertiseAddress, c.InitialCluster, c.InitialClusterState = f.Name, f.Address, nil, config.StateNew
			err := errors.Join(loader.ResolveController(), loader.ValidateController())
			return *c, err
		},
	})
	if hint, ok := advice.Of(err); ok {
		err = fmt.Errorf("%w; hint: %s", err, hint)
	}
	return err
}

// runController runs what a controller has of a cluster, with the configuration file args[0],
// until SIGTERM.
func runController(args []string) error {
	if len(args) != 1 {
		return errors.New("want a configuration file")
	}
	cfg, err := readConfig(args[0])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l := cfg.Layout()
	lock, err := datadir.Lock(l)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := pki.Ensure(l, cfg.PKISpec()); err != nil {
		return err
	}
	sockets, err := datadir.NewSockets(l)
	if err != nil {
		return err
	}
	defer sockets.Close()
	logs, err := logging.New(os.Stderr, logging.Text, nil)
	if err != nil {
		return err
	}
	return runMember(ctx, cfg, l, sockets, logs)
}

func readConfig(file string) (config.Controller, error) {
	loader, err := load(file)
	if err != nil {
		return config.Controller{}, err
	}
	return loader.Config.Controller, loader.Validate()
}

func load(file string) (*config.Loader, error) {
	loader := config.NewLoader()
	flags := pflag.NewFlagSet("controller", pflag.ContinueOnError)
	loader.AddFlags(flags)
	if err := errors.Join(flags.Parse([]string{"--config=" + file}), loader.Load()); err != nil {
		return nil, err
	}
	return loader, loader.Resolve()
}

// runMember is the part of appliance.Run that needs no Kubernetes.
func runMember(ctx context.Context, cfg config.Controller, l pki.Layout, sockets *datadir.Sockets, logs *logging.Logs) error {
	own, err := etcd.New(etcd.Config{
		Args: program.EtcdArgs(cfg, l, sockets.Etcd), Log: logs.Logger(program.Etcd), HadQuorum: true, HadOthers: true, OnMembership: func(server *embed.Etcd) { _ = recordOf(server).Write(l) },
	})
	if err != nil {
		return err
	}
	if err := own.AdmitControllers(); err != nil {
		return err
	}
	members := membership.New(membership.Config{
		Etcd: own, Controller: cfg, Layout: l, Version: "v0.1.0-dev", Prefix: "/registry", Log: logs.Logger(membership.Name),
	})
	o := others.New(own, slog.New(slog.DiscardHandler))
	own.UseViews(o)
	o.Listen(program.StatusAddress(cfg))
	var reader flagvalue.Reader
	apiserver, _ := program.Merge(program.APIServer, program.APIServerArgs(cfg, l, sockets.Etcd), program.ParseUser(cfg.APIServerArgs))
	flags := &agree.Controllers{
		Member: own, Layout: l, Address: cfg.AdvertiseAddress, Profile: cfg.Profile, Log: logs.Logger("kthwd"), Versions: map[string]string{"kthwd": "v0.1.0-dev"},
		Args: map[string][]program.Arg{program.APIServer: apiserver, program.ControllerManager: program.ControllerManagerArgs(cfg, l)},
		Read: func(name, key string, values ...string) (string, string, bool) {
			r, ok := reader.Read(name, key, values...)
			return r.Value, r.Default, ok
		},
	}
	private := members.Private()
	maps.Copy(private, flags.Private())
	g := supervise.New(logs.Logger("kthwd"))
	server := status.NewServer(status.ServerConfig{
		Socket: sockets.Control, Logs: logs, Others: o.Controllers, Private: private,
		Report: func() status.Report {
			isReady, reason := g.Ready()
			quorum := own.Quorum()
			return status.Report{Observed: append(members.Findings(), flags.Findings()...), PID: os.Getpid(), Name: cfg.Name, Ready: isReady, Reason: reason, Components: g.Status(), Quorum: &quorum, Member: own.Member()}
		},
	})
	o.Exchange(server.Own)
	first := g.Add(server)
	g.Add(members, g.Add(own, first))
	go o.Run(ctx)
	go flags.Run(ctx)
	if err := g.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return err
	}
	return nil
}

// recordOf is what appliance keeps of a member for its next start.
func recordOf(server *embed.Etcd) etcdfiles.Record {
	r := etcdfiles.Versions("v0.1.0-dev")
	ids := etcdfiles.RecordOf(server.Server.Cluster().ID(), server.Server.MemberID())
	r.Cluster, r.Member, r.Members = ids.Cluster, ids.Member, view.Voters(server)
	return r
}
