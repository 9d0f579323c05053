package members

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/join"
	"kthwd/appliance/member"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

// memberAddFlags are the flags of kthwd member add that are not settings.
type memberAddFlags struct {
	ttl   time.Duration
	caKey bool
	from  string
}

func (a *app) memberAddVerb(l *config.Loader) *cobra.Command {
	const usage = "NAME ADDRESS"
	f := &memberAddFlags{}
	cmd := &cobra.Command{
		Use:   "add " + usage + " [flags]",
		Short: "Make a token that lets another controller join",
		Long: "Make a token that lets another controller, NAME at ADDRESS, join the cluster, and print the\n" +
			"command for that machine. The token can be used once, from ADDRESS, within --ttl; until then\n" +
			"the cluster does not change. A second token for the same controller replaces the first.",
		Example: "  kthwd member add c1 10.0.1.35",
		Args:    cli.WantArgs(2, 2, usage),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.memberAdd(cmd.Context(), l, args[0], args[1], f)
		},
	}
	f.add(cmd.Flags())
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (f *memberAddFlags) add(fs *pflag.FlagSet) {
	fs.DurationVar(&f.ttl, "ttl", 15*time.Minute, "`DURATION` How long the token is good, and how long the controller may take to start after it has joined.")
	fs.StringVar(&f.from, "from", "", "`ADDRESS` The address that the new controller speaks from, if it is not ADDRESS: behind address translation, or with several interfaces.")
	fs.BoolVar(&f.caKey, "with-ca-key", false, "Give the new controller the key of the CA, so that kube-controller-manager can sign certificates there.")
}

func (a *app) memberAdd(ctx context.Context, l *config.Loader, name, address string, f *memberAddFlags) error {
	if _, err := config.ParseMember(name, address); err != nil {
		return err
	}
	var added member.Added
	in := member.AddRequest{Name: name, Address: address, TTL: f.ttl, CAKey: f.caKey, From: f.from}
	if err := a.AskMembers(ctx, l, http.MethodPost, "/members", in, &added); err != nil {
		return err
	}
	for _, w := range added.Warnings {
		a.Warn(w)
	}
	fmt.Fprintf(a.Out, "The token is good for %v, once. On %s, as the user that runs kthwd there:\n\n  kthwd join -\n\nIt reads this line from standard input:\n\n  %s\n", f.ttl, address, text.Line(added.Token))
	return nil
}

func (a *app) joinVerb(l *config.Loader) *cobra.Command {
	const usage = "TOKEN"
	var replace bool
	cmd := &cobra.Command{
		Use:   "join " + usage + " [flags]",
		Short: "Join this machine to a running cluster as a controller",
		Long: "Join this machine to a running cluster as a controller, with a token that kthwd member add\n" +
			"made there. The command fetches the files that the controllers share, adds this machine to\n" +
			"etcd as a learner, and writes kthwd.yaml into the data directory. The last step is to start\n" +
			"kthwd with that file. Ports default to those of the other controllers. With - for TOKEN,\n" +
			"the first line of standard input is the token; other users cannot see it there.",
		Example: "  kthwd join -\n  kthwd join - --replace-data <token",
		Args:    cli.WantArgs(1, 1, usage),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.join(cmd.Context(), l, args[0], replace, cmd.InOrStdin())
		},
	}
	cmd.Flags().BoolVar(&replace, "replace-data", false, "Move existing etcd data and the existing kthwd.yaml aside; nothing is deleted.")
	l.AddFlags(cmd.Flags(), "config", "data-dir", "etcd-data-dir", "bind-address", "subject-alt-name", "secure-port", "etcd-client-port",
		"etcd-peer-port", "controller-manager-port", "scheduler-port", "join-port", "health-address", "health-server-name", "metrics-address", "metrics-web-config",
		"metrics-insecure", "metrics-pprof", "allow-debugger", "log-format", "log-level",
		"etcd-arg", "kube-apiserver-arg", "kube-controller-manager-arg", "kube-scheduler-arg")
	return cmd
}

// readToken reads the token from the first line of standard input for "-".
func (a *app) readToken(token string, in io.Reader) (string, error) {
	if token != "-" {
		a.Warn("a token on the command line is visible to every user of this machine; kthwd join - reads it from standard input")
		return token, nil
	}
	line, err := bufio.NewReader(io.LimitReader(in, 4<<10)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	return strings.TrimSpace(line), nil
}

func (a *app) join(ctx context.Context, l *config.Loader, token string, replace bool, in io.Reader) error {
	token, err := a.readToken(token, in)
	if err != nil {
		return err
	}
	if err := l.Load(); err != nil {
		return err
	}
	if l.Config.Controller.DataDir == "" {
		return cli.Usagef("--data-dir is empty")
	}
	paths := l.Config.Controller
	if err := paths.Resolve(); err != nil {
		return err
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	joined, err := join.Join(ctx, paths.Layout(), join.Options{
		Token: token, Version: cli.Version, Config: l.Config, ReplaceData: replace,
		Configure: func(f member.Files) (config.Controller, error) { return configureJoiner(l, f) },
		Say:       func(line string) { fmt.Fprintln(a.Out, line) },
	})
	if err != nil && ctx.Err() != nil {
		return advice.With(errors.New("interrupted"), "the same command continues where it stopped; to cancel the join, run kthwd member remove NAME on a controller")
	}
	if err != nil {
		return err
	}
	for _, w := range joined.Warnings {
		a.Warn(w)
	}
	fmt.Fprintf(a.Out, "%s is a member of the cluster, and votes once it has caught up. Within %v, start it:\n\n  kthwd --config=%s\n\n"+
		"Then give the load balancers the backend %s, unless they discover it.\n", text.Line(joined.Name), joined.Within, text.ShellWord(joined.File), text.Line(joined.Server))
	return nil
}

// configureJoiner fills in the settings of the cluster. A setting of the machine, such
// as a port, keeps the value that it has here.
func configureJoiner(l *config.Loader, f member.Files) (config.Controller, error) {
	c, s := &l.Config.Controller, f.Settings
	var errs []error
	for _, v := range []struct {
		key   string
		is    *string
		other string
	}{
		{"name", &c.Name, f.Name}, {"advertise-address", &c.AdvertiseAddress, f.Address},
		{"service-cluster-ip-range", &c.ServiceClusterIPRange, s.ServiceClusterIPRange}, {"cluster-cidr", &c.ClusterCIDR, s.ClusterCIDR},
	} {
		if l.IsSet(v.key) && *v.is != v.other {
			errs = append(errs, advice.With(fmt.Errorf("%s: %s is %s here, but %s in the cluster", l.Origin(v.key), v.key, *v.is, v.other), "leave it out, or name another file with --config"))
		}
		*v.is = v.other
	}
	for _, p := range []struct {
		key   string
		is    *int
		other int
	}{
		{"secure-port", &c.SecurePort, s.SecurePort}, {"etcd-client-port", &c.EtcdClientPort, s.EtcdClientPort},
		{"etcd-peer-port", &c.EtcdPeerPort, s.EtcdPeerPort}, {"join-port", &c.JoinPort, s.JoinPort},
	} {
		if !l.IsSet(p.key) {
			*p.is = p.other
		}
	}
	if !l.IsSet("profile") && s.Profile != "" {
		c.Profile = s.Profile
	}
	if ip, err := netip.ParseAddr(f.Address); err == nil && ip.IsLoopback() && !l.IsSet("bind-address") {
		c.BindAddress = f.Address // several controllers on one machine
	}
	c.InitialCluster, c.InitialClusterState = nil, config.StateNew // until it is admitted
	if err := l.ResolveController(); err != nil {
		return *c, err
	}
	return *c, errors.Join(append(errs, l.ValidateController())...)
}
