package keys

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/pki"
	"kthwd/cmd/kthwd/cli"
)

func (a *app) pkiVerb(l *config.Loader) *cobra.Command {
	cmd := cli.Group("pki", "Make, show and issue certificates and kubeconfigs")
	cmd.AddCommand(a.pkiInitVerb(l), a.pkiShowVerb(l), a.pkiNodeVerb(l), a.pkiControllerVerb(l), a.pkiRenewVerb(l), a.pkiServiceAccountVerb(l), a.pkiCAVerb(l), a.pkiSplitVerb(l))
	return cmd
}

func (a *app) pkiInitVerb(l *config.Loader) *cobra.Command {
	f := &clusterFlags{}
	var newSecrets []string
	cmd := &cobra.Command{
		Use:   "init [flags]",
		Short: "Make missing certificates, keys and kubeconfigs",
		Long: "Make the missing certificates, keys and kubeconfigs of the data directory, as\n" +
			"kthwd --role=controller does when it starts. An existing file is used and never changed;\n" +
			"one that does not fit the others is refused. So is a missing secret where etcd has data:\n" +
			"with a new one secrets cannot be read, or nodes and tokens are refused. If a new one is\n" +
			"meant, move the old files away and name it with --new-secrets.\n\n" +
			"With --controllers, make the files of a whole cluster: below --out, a directory for each\n" +
			"machine with its files and a kthwd.yaml, and the directory ca with all CAs, to keep safe.",
		Example: "  kthwd pki init --data-dir=/var/lib/kubernetes --subject-alt-name=10.0.0.20,lb.example.com\n" +
			"  kthwd pki init --controllers=c0=10.0.1.73,c1=10.0.1.35,c2=10.0.1.36 --lb=10.0.1.48 --out=cluster",
		Args: cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.asked(cmd.Flags()) {
				return a.pkiInitCluster(l, f, cmd.Flags())
			}
			if cmd.Flags().Changed("profile") {
				return advice.With(cli.Usagef("--profile without --controllers: no kthwd.yaml is written"), "give it to kthwd --role=controller, or set profile in its file")
			}
			return a.pkiInit(l, newSecrets)
		},
	}
	cmd.Flags().StringSliceVar(&newSecrets, "new-secrets", nil, "`NAME` Secrets to make although etcd has data: "+strings.Join(pki.SecretNames(), ", ")+".")
	f.add(cmd.Flags())
	l.AddFlags(cmd.Flags(), "config", "data-dir", "etcd-data-dir", "bind-address", "advertise-address", "subject-alt-name",
		"secure-port", "etcd-peer-port", "service-cluster-ip-range", "cluster-cidr", "profile")
	return cmd
}

func (a *app) pkiInit(l *config.Loader, newSecrets []string) error {
	c, err := cli.Controller(l)
	if err != nil {
		return err
	}
	for _, name := range newSecrets {
		if !slices.Contains(pki.SecretNames(), name) {
			return advice.With(cli.Usagef("--new-secrets=%s: no such secret", name), "want some of "+strings.Join(pki.SecretNames(), ","))
		}
	}
	spec := c.PKISpec()
	spec.NewSecrets = newSecrets
	if err := datadir.Usable(c.Layout()); err != nil {
		return err
	}
	r, err := pki.Ensure(c.Layout(), spec)
	a.list(r)
	return err
}

// list prints which files were made and which were kept.
func (a *app) list(r pki.Report) {
	for _, w := range r.Warnings {
		a.Warn(w)
	}
	for _, file := range r.Created {
		fmt.Fprintf(a.Out, "made  %s\n", file)
	}
	for _, file := range r.Kept {
		fmt.Fprintf(a.Out, "kept  %s\n", file)
	}
}

func (a *app) pkiShowVerb(l *config.Loader) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show [flags]",
		Short: "List certificates: file, subject, names, use, expiry",
		Long: "List the certificates in the data directory: file, subject, names, use and expiry. The exit\n" +
			"code is 1 if one has a problem, has expired or is not valid yet.",
		Args: cli.NoVerb,
		RunE: func(*cobra.Command, []string) error { return a.pkiShow(l) },
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) pkiShow(l *config.Loader) error {
	c, err := cli.Controller(l)
	if err != nil {
		return err
	}
	entries, err := pki.List(c.Layout())
	if err == nil && len(entries) == 0 || errors.Is(err, fs.ErrNotExist) {
		return advice.With(fmt.Errorf("%s: no certificates", c.DataDir), "make them with kthwd pki init, or name another directory with --data-dir")
	}
	if err != nil {
		return err
	}
	now := time.Now()
	if err := pki.WriteTable(a.Out, entries, now); err != nil {
		return err
	}
	if slices.ContainsFunc(entries, func(e pki.Entry) bool {
		dated := !e.NotAfter.IsZero() // a public key alone is not: service-account.pem after a rotation
		return e.Problem != "" || dated && e.NotAfter.Before(now) || e.NotBefore.After(now)
	}) {
		return cli.ErrDegraded
	}
	return nil
}

func (a *app) pkiNodeVerb(l *config.Loader) *cobra.Command {
	const usage = "NAME ADDRESS..."
	var dir, server string
	cmd := &cobra.Command{
		Use:   "node " + usage + " [flags]",
		Short: "Issue the certificate and the kubeconfig of a worker node",
		Long: "Issue the certificate, the key and the kubeconfig with which the kubelet of node NAME\n" +
			"joins, as in part 2 of the tutorial. The API server reaches the kubelet at each ADDRESS.\n" +
			"The files are made in the current directory unless --output-dir names another one.",
		Example: "  kthwd pki node worker-0 10.0.0.31 --server=https://10.0.0.20:6443",
		Args:    cli.WantArgs(2, -1, usage),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.pkiNode(l, dir, server, args[0], args[1:])
		},
	}
	cmd.Flags().StringVar(&dir, "output-dir", ".", "`DIR` Directory for the files.")
	cmd.Flags().StringVar(&server, "server", "", "`URL` Address at which the node reaches the API server; empty means this machine at --advertise-address.")
	l.AddFlags(cmd.Flags(), "config", "data-dir", "bind-address", "advertise-address", "secure-port")
	return cmd
}

func (a *app) pkiNode(l *config.Loader, dir, server, name string, addresses []string) error {
	c, err := cli.Controller(l)
	if err != nil {
		return err
	}
	if server == "" {
		server = "https://" + net.JoinHostPort(c.AdvertiseAddress, strconv.Itoa(c.SecurePort))
	}
	if u, err := url.Parse(server); err != nil || u.Scheme != "https" || u.Host == "" {
		return cli.Usagef("--server %q is no https URL", server)
	}
	files, err := pki.IssueNode(c.Layout(), dir, name, addresses, server)
	for _, file := range files {
		fmt.Fprintf(a.Out, "made  %s\n", file)
	}
	return err
}

func (a *app) pkiControllerVerb(l *config.Loader) *cobra.Command {
	const usage = "NAME ADDRESS..."
	var dir string
	cmd := &cobra.Command{
		Use:   "controller " + usage + " [flags]",
		Short: "Issue the certificate of another controller",
		Long: "Issue kubernetes.pem, etcd.pem and their keys for another controller NAME, with each\n" +
			"ADDRESS and the names in those of --data-dir, which must also have the keys of the CAs. A\n" +
			"machine that has these files before kthwd join needs no controller with the keys of the CAs.\n" +
			"Where etcd has no CA of its own, there is no etcd.pem.",
		Example: "  kthwd pki controller c3 10.0.1.50 --data-dir=cluster/ca --output-dir=c3",
		Args:    cli.WantArgs(2, -1, usage),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.pkiController(l, dir, args[0], args[1:])
		},
	}
	cmd.Flags().StringVar(&dir, "output-dir", "", "`DIR` Directory for the files; empty means a directory called NAME.")
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) pkiController(l *config.Loader, dir, name string, addresses []string) error {
	c, err := cli.Controller(l)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		if _, err := config.ParseMember(name, address); err != nil {
			return err
		}
	}
	issued, err := pki.IssueController(c.Layout(), addresses, pki.NameKubernetes, pki.NameEtcd)
	switch {
	case errors.Is(err, pki.ErrNoCAKey):
		return advice.With(err, "run this where the keys of the CAs are: for a cluster of kthwd pki init, --data-dir=ca below its --out")
	case err != nil:
		return err
	}
	r, err := issued.Alone(cmp.Or(dir, name))
	a.list(r)
	return err
}
