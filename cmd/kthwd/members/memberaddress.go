package members

import (
	"context"
	"fmt"
	"net"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/readdress"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

func (a *app) memberAddressVerb(l *config.Loader) *cobra.Command {
	const usage = "ADDRESS"
	var atStart bool
	cmd := &cobra.Command{
		Use:   "address " + usage + " [flags]",
		Short: "Give this controller another address, while kthwd is down",
		Long: "Give the controller of this data directory the address ADDRESS, which this machine has.\n" +
			"kthwd must be stopped. The other controllers must have a quorum without this one: they\n" +
			"change its peer URL. kubernetes.pem is made anew with all names of the old one, and the\n" +
			"configuration file and the kubeconfigs get the address. The last step is to start kthwd.\n" +
			"With --at-start the start changes the peer URL, once there is a quorum: for the first one\n" +
			"when the addresses of several have changed at once, and for clusters of two.",
		Example: "  kthwd member address 10.0.1.50 --config=/etc/kthwd/kthwd.yaml",
		Args:    cli.WantArgs(1, 1, usage),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.memberAddress(cmd.Context(), l, args[0], atStart)
		},
	}
	cmd.Flags().BoolVar(&atStart, "at-start", false, "Leave the peer URL to the next start, and ask no other controller.")
	l.AddFlags(cmd.Flags(), "config", "data-dir", "etcd-data-dir")
	return cmd
}

func (a *app) memberAddress(ctx context.Context, l *config.Loader, address string, atStart bool) error {
	if err := l.Load(); err != nil {
		return err
	}
	if err := l.ResolveController(); err != nil {
		return err
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	c, err := readdress.Begin(readdress.Options{
		Config: l.Config.Controller, File: l.File(), Address: address, AtStart: atStart,
		Say: func(line string) { fmt.Fprintln(a.Out, line) },
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Run(ctx); err != nil {
		return err
	}
	port := strconv.Itoa(l.Config.Controller.SecurePort)
	fmt.Fprintf(a.Out, "\nStart kthwd here. Then give the load balancers the backend %s in place of %s, unless they discover it.\n",
		text.Line(net.JoinHostPort(address, port)), text.Line(net.JoinHostPort(c.Old(), port)))
	return nil
}
