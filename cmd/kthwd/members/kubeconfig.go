package members

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/durable"
	"kthwd/appliance/pki"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
	"kthwd/appliance/users"
	"kthwd/cmd/kthwd/cli"
	"kthwd/rbacseed"
)

// defaultUserLife is how long the certificate of a user lasts unless --expires says otherwise: a
// working day, so that a lost file is of little use soon.
const defaultUserLife = 24 * time.Hour

// kubeconfigFlags are those of kthwd kubeconfig create.
type kubeconfigFlags struct {
	groups                  []string
	expires                 time.Duration
	server, out, kubeconfig string
	replace, balancer       bool
}

func (a *app) kubeconfigVerb(l *config.Loader) *cobra.Command {
	cmd := cli.Group("kubeconfig", "Make kubeconfigs for users, list and revoke certificates")
	cmd.AddCommand(a.kubeconfigCreateVerb(l), a.kubeconfigListVerb(l), a.kubeconfigRevokeVerb(l))
	return cmd
}

func (a *app) kubeconfigCreateVerb(l *config.Loader) *cobra.Command {
	const usage = "USER"
	f := &kubeconfigFlags{}
	cmd := &cobra.Command{
		Use:   "create " + usage + " [flags]",
		Short: "Make a kubeconfig for a user, with a certificate that expires",
		Long: "Make a kubeconfig for USER, with a new key and a certificate that expires. The user has no\n" +
			"rights but those that RBAC gives to the name or to a group. The certificate is in the ledger\n" +
			"before the file is written, and kthwd kubeconfig revoke takes it back.\n\n" +
			"This needs a controller that runs on this machine and the key of the CA. system:masters is\n" +
			"refused, as are all names and groups of Kubernetes, and names of nodes and controllers:\n" +
			"super-admin.kubeconfig is the one file for an emergency.",
		Example: "  kthwd kubeconfig create jane --group=developers --server=https://10.0.1.48:6443\n" +
			"  kthwd kubeconfig create kthwd-lb --load-balancer --server=https://10.0.1.48:6443 --out=lb.kubeconfig\n" +
			"  kthwd kubeconfig create ci --expires=1h --out=- | ssh build 'umask 77; cat >ci.kubeconfig'",
		Args: cli.WantArgs(1, 1, usage),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.balancer {
				f.groups = append(f.groups, rbacseed.BalancerGroup)
				if !cmd.Flags().Changed("expires") {
					f.expires = pki.BalancerLife
				}
			}
			return a.kubeconfigCreate(cmd.Context(), l, f, args[0])
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&f.groups, "group", nil, "`GROUP` Group of the user; can be given more than once.")
	fs.BoolVar(&f.balancer, "load-balancer", false, "Make it for --discovery-kubeconfig: with its rights, for 720h, and renewed by the load balancer.")
	fs.DurationVar(&f.expires, "expires", defaultUserLife, "`DURATION` How long the certificate lasts, 1m or more, and no longer than the CA.")
	fs.StringVar(&f.server, "server", "", "`URL` Address at which the user reaches the API server; empty means this machine at --advertise-address.")
	fs.StringVar(&f.out, "out", "", "`FILE` File for the kubeconfig; - means standard output, empty USER.kubeconfig.")
	fs.BoolVar(&f.replace, "replace", false, "Replace the file if it exists.")
	kubeconfigFlag(fs, &f.kubeconfig)
	l.AddFlags(fs, "config", "data-dir", "bind-address", "advertise-address", "secure-port")
	return cmd
}

func (a *app) kubeconfigCreate(ctx context.Context, l *config.Loader, f *kubeconfigFlags, name string) error {
	u := pki.User{Name: name, Groups: f.groups, Life: f.expires, Server: f.server}
	if err := u.Check(); err != nil {
		return advice.With(advice.Usage(err), userHint(u))
	}
	out, err := f.file(u)
	if err != nil {
		return err
	}
	c, err := a.ControllerHere(ctx, l)
	if err != nil {
		return err
	}
	u.Server = cmp.Or(f.server, cli.APIURL(c))
	if server, err := url.Parse(u.Server); err != nil || server.Scheme != "https" || server.Host == "" {
		return cli.Usagef("--server %q is no https URL", u.Server)
	}
	layout := c.Layout()
	if err := cli.WantCA(layout); err != nil {
		return err
	}
	return a.withNodes(ctx, l, f.kubeconfig, nodeTimeout, func(ctx context.Context, n nodes) error {
		if err := freeName(ctx, n, layout, name); err != nil {
			return err
		}
		if users.IsBalancer(f.groups) {
			if err := rbacseed.ApplyBalancer(ctx, n.client.RbacV1()); err != nil {
				return err
			}
		}
		if u.From, err = users.Begin(ctx, n.etcd, name); err != nil {
			return err
		}
		made, err := pki.IssueUser(layout, u)
		if errors.Is(err, pki.ErrNoCAKey) {
			return advice.With(err, "run this on a controller that has the key; or issue a certificate where the key is kept, with a CertificateSigningRequest's fields: the ledger has it once it is used")
		}
		if err != nil {
			return err
		}
		return a.giveKubeconfig(ctx, n.etcd, made, out, f.replace)
	})
}

// userHint is the way to what pki.User.Check refuses.
func userHint(u pki.User) string {
	switch {
	case slices.Contains(u.Groups, "system:masters"):
		return "give the user rights with RBAC, such as kthwd kubectl create clusterrolebinding NAME --clusterrole=cluster-admin --user=" + text.ShellWord(u.Name)
	case strings.HasPrefix(u.Name, "system:node:"):
		return "a node joins with a token: kthwd node token create"
	}
	return "choose another name; kthwd kubectl create rolebinding gives rights to any"
}

// file returns the path of the kubeconfig, "-" for standard output. It refuses, before anything
// is signed, a file that could not be written.
func (f *kubeconfigFlags) file(u pki.User) (string, error) {
	out := cmp.Or(f.out, u.KubeconfigName())
	if out == "" {
		return "", advice.With(cli.Usagef("%q cannot be the name of a file", u.Name), "name the file with --out")
	}
	if out == "-" {
		return out, nil
	}
	switch info, err := os.Lstat(out); {
	case err == nil && !info.Mode().IsRegular():
		return "", advice.With(fmt.Errorf("%s is no regular file", out), "name another file with --out")
	case err == nil && !f.replace:
		return "", advice.With(fmt.Errorf("%s exists", out), "replace it with --replace, or name another file with --out")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	dir := filepath.Dir(out)
	if info, err := os.Stat(dir); err != nil {
		return "", err
	} else if !info.IsDir() {
		return "", fmt.Errorf("%s is no directory", dir)
	}
	return out, nil
}

// freeName refuses the names of controllers and nodes: a user of that name would be taken for
// the machine.
func freeName(ctx context.Context, n nodes, l pki.Layout, name string) error {
	taken := func(by string) error {
		return advice.With(advice.Usage(fmt.Errorf("user %q: is the name of a %s", name, by)), "choose another name, such as "+text.ShellWord(name+"-user"))
	}
	names, err := pki.Controllers(l.Cert(pki.NameKubernetes))
	if err == nil && slices.Contains(names.CommonNames, name) {
		return taken("controller")
	}
	members, err := n.etcd.MemberList(ctx)
	if err != nil {
		return err
	}
	for _, m := range members.Members {
		if m.Name == name {
			return taken("controller")
		}
	}
	_, err = n.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	switch {
	case err == nil:
		return taken("node")
	case apierrors.IsNotFound(err), apierrors.IsBadRequest(err), apierrors.IsInvalid(err):
		return nil
	}
	return err
}

// giveKubeconfig records the certificate, waits until it is valid, and gives the file away.
func (a *app) giveKubeconfig(ctx context.Context, etcd *clientv3.Client, made pki.UserKubeconfig, out string, replace bool) error {
	record := users.RecordOf(made.Cert)
	record.Signer, record.AskedBy = users.SignerKthwd, invoker()
	if err := users.Record(ctx, etcd, record); err != nil {
		return fmt.Errorf("record the certificate: %w", err)
	}
	supervise.Sleep(ctx, time.Until(made.Cert.NotBefore)) // a revocation was just before
	if ctx.Err() != nil {
		err := fmt.Errorf("the certificate begins on %s, after the newest revocation of %s: %w", made.Cert.NotBefore.UTC().Format(time.RFC3339), text.Line(record.User), ctx.Err())
		return errors.Join(advice.With(err, "compare the clocks of the controllers: the revocation has the time of another one"), forget(ctx, etcd, record))
	}
	if out == "-" {
		_, err := a.Out.Write(made.Data)
		return err
	}
	if err := writeKubeconfig(out, made.Data, replace); err != nil {
		return errors.Join(err, forget(ctx, etcd, record))
	}
	_, err := fmt.Fprintf(a.Out, "made  %s for %s until %s, serial number %s\n", out, text.Line(record.User), record.NotAfter.Format(time.RFC3339), record.Serial)
	return err
}

// forget deletes the record of a certificate that nobody has received, also after the end of ctx.
func forget(ctx context.Context, etcd *clientv3.Client, record users.Certificate) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), nodeTimeout)
	defer cancel()
	return users.Forget(ctx, etcd, record)
}

// writeKubeconfig makes the file whole or not at all.
func writeKubeconfig(path string, data []byte, replace bool) error {
	const mode = 0o600
	if replace {
		return durable.Write(path, data, mode)
	}
	hidden := durable.Hidden(path)
	if err := os.Remove(hidden); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := durable.Create(hidden, data, mode)
	if err == nil {
		err = os.Link(hidden, path) // it replaces nothing
	}
	if removed := os.Remove(hidden); err == nil {
		err = removed
	}
	if err != nil {
		return err
	}
	return durable.Sync(filepath.Dir(path))
}

// invoker is who runs the verb, as the ledger has it.
func invoker() string {
	name := fmt.Sprintf("uid %d", os.Geteuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if before := os.Getenv("SUDO_USER"); before != "" && before != name {
		name = before + " as " + name
	}
	if host, err := os.Hostname(); err == nil {
		name += " on " + host
	}
	return text.Line(name)
}

func (a *app) kubeconfigListVerb(l *config.Loader) *cobra.Command {
	var all bool
	cmd := nodeListing(a, l, &cobra.Command{
		Use:   "list [flags]",
		Short: "List the certificates of users, and which are revoked",
		Long: "List the certificates in the ledger that have not expired: what kthwd kubeconfig create has\n" +
			"made, what was signed for a CertificateSigningRequest, and what was signed elsewhere, from its\n" +
			"first use on. --all adds those of nodes and of the control plane, and expired ones.",
		Example: "  kthwd kubeconfig list\n  kthwd kubeconfig list --all -o json",
	}, func(ctx context.Context, _ kubernetes.Interface, etcd *clientv3.Client) ([]users.Entry, error) {
		return users.List(ctx, etcd, all)
	}, writeCertificates)
	cmd.Flags().BoolVar(&all, "all", false, "Include certificates of nodes and of the control plane, and expired ones.")
	return cmd
}

func writeCertificates(out io.Writer, list []users.Entry) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "USER\tGROUPS\tSTATE\tENDS\tSIGNER\tASKED BY\tSERIAL NUMBER")
	for _, e := range list {
		var groups []string
		for _, g := range e.Groups {
			groups = append(groups, text.Line(g))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cmp.Or(text.Line(e.User), "-"), cmp.Or(strings.Join(groups, ","), "-"), e.State,
			e.NotAfter.UTC().Format(time.RFC3339), cmp.Or(text.Line(e.Signer), "-"), cmp.Or(text.Line(e.AskedBy), "-"), text.Line(e.Serial))
	}
	return w.Flush()
}

func (a *app) kubeconfigRevokeVerb(l *config.Loader) *cobra.Command {
	const usage = "USER|SERIAL"
	var kubeconfig string
	var unlisted bool
	cmd := &cobra.Command{
		Use:   "revoke " + usage + " [flags]",
		Short: "Refuse a certificate, or all that a user has, from now on",
		Long: "Refuse the certificate with the serial number SERIAL, or all certificates of USER that begin\n" +
			"before now. Every API server refuses them within seconds, also on open connections: watches\n" +
			"end. A revocation stays until the certificates have expired, and a new certificate of the\n" +
			"user is accepted. Other ports that trust the cluster's CA, such as those of kubelets, do not\n" +
			"know of it: take the user's rights as well.\n\n" +
			"The certificates of a component, such as system:kube-proxy, are revoked by serial number;\n" +
			"those of a node by kthwd node remove; those of the control plane's programs not at all.",
		Example: "  kthwd kubeconfig revoke jane\n  kthwd kubeconfig revoke 5f3c0d6b9f0e4a7d8c2b1a0918273645",
		Args:    cli.WantArgs(1, 1, usage),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.ControllerHere(cmd.Context(), l)
			if err != nil {
				return err
			}
			return a.withNodes(cmd.Context(), l, kubeconfig, nodeTimeout, func(ctx context.Context, n nodes) error {
				return a.revoke(ctx, n, c.Layout(), args[0], unlisted)
			})
		},
	}
	cmd.Flags().BoolVar(&unlisted, "unlisted", false, "Revoke although the ledger has no certificate of that user or serial number.")
	kubeconfigFlag(cmd.Flags(), &kubeconfig)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

// mayRevoke refuses what would keep the control plane or this machine's verbs out.
func mayRevoke(l pki.Layout, t users.Target) error {
	if err := users.Revocable(t.User); err != nil {
		return err
	}
	if t.OfUser() && users.IsComponent(t.User) {
		return advice.With(advice.Usage(fmt.Errorf("%s is a component of Kubernetes: many machines may use its certificates", t.User)),
			"give those machines another certificate, and revoke the stolen one by its serial number: kthwd kubeconfig list")
	}
	if t.OfUser() && (t.User == pki.NameAdmin || t.User == pki.NameSuperAdmin) {
		return advice.With(advice.Usage(fmt.Errorf("%s is the user of %s.kubeconfig on every controller", t.User, t.User)),
			"revoke one certificate by its serial number: kthwd kubeconfig list")
	}
	path := l.Kubeconfig(pki.NameAdmin)
	if cert, err := pki.CertificateIn(path); err == nil && users.Serial(cert) == t.Serial {
		return advice.With(advice.Usage(fmt.Errorf("%s has this certificate, with which the verbs here work", path)), "give it another one first: kthwd pki renew admin")
	}
	return nil
}

func (a *app) revoke(ctx context.Context, n nodes, l pki.Layout, what string, unlisted bool) error {
	target, err := users.Find(ctx, n.etcd, what)
	switch {
	case errors.Is(err, users.ErrUnlisted) && !unlisted:
		if wrong := users.Revocable(what); wrong != nil {
			return wrong
		}
		return advice.With(fmt.Errorf("%s: %w", what, err), "kthwd kubeconfig list shows those that there are; --unlisted revokes it nevertheless")
	case err != nil && !errors.Is(err, users.ErrUnlisted):
		return err
	}
	if err := mayRevoke(l, target); err != nil {
		return err
	}
	until, err := pki.EndOfCA(l)
	if err != nil {
		return err
	}
	if err := users.Revoke(ctx, n.etcd, target, until); err != nil {
		return err
	}
	for _, c := range target.Certificates {
		fmt.Fprintf(a.Out, "revoked  %s of %s, which would end on %s\n", text.Line(c.Serial), text.Line(c.User), c.NotAfter.UTC().Format(time.RFC3339))
	}
	if target.OfUser() {
		_, err = fmt.Fprintf(a.Out, "Every certificate of %s that begins before now is refused.\n", text.Line(target.User))
		if target.Serial != "" {
			_, err = fmt.Fprintf(a.Out, "So is the certificate with the serial number %s, unless it belongs to a node or to a program of the control plane.\n", text.Line(target.Serial))
		}
	}
	return err
}
