package members

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/nodejoin"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
	"kthwd/appliance/workers"
	"kthwd/cmd/kthwd/cli"
)

// tokenFlags are the flags of kthwd node token create.
type tokenFlags struct {
	ttl                        time.Duration
	limits                     workers.Limits
	ranges                     []string
	server, kubeconfig, output string
	script                     bool
}

func (a *app) nodeTokenVerb(l *config.Loader) *cobra.Command {
	cmd := cli.Group("token", "Make, list and delete tokens with which worker nodes join")
	cmd.AddCommand(a.nodeTokenCreateVerb(l), a.nodeTokenListVerb(l), a.nodeTokenDeleteVerb(l))
	return cmd
}

func (a *app) nodeTokenCreateVerb(l *config.Loader) *cobra.Command {
	f := &tokenFlags{}
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "Make a token with which a worker node joins",
		Long: "Make a token with which a machine joins the cluster as a worker node, and print the command\n" +
			"for that machine. The token is good for one node, unless --nodes says more, within --ttl.\n" +
			"--name and --cidr bound which node it is good for, and the addresses for which that node\n" +
			"gets serving certificates, then and later. --script prints a shell script instead, which makes\n" +
			"the machine a node without kthwd; it holds the token.\n\n" +
			"The key of the CA must be on the controllers: kube-controller-manager signs with it.",
		Example: "  kthwd node token create --server=https://10.0.1.48:6443\n" +
			"  kthwd node token create --name=worker-0 --cidr=10.0.1.31/32 --script | ssh root@worker-0 sh",
		Args: cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.nodeTokenCreate(cmd.Context(), l, f) },
	}
	fs := cmd.Flags()
	fs.DurationVar(&f.ttl, "ttl", workers.DefaultTTL, "`DURATION` How long the token is good, 1m to 168h.")
	fs.IntVar(&f.limits.Nodes, "nodes", 1, "`N` How many nodes may join with it.")
	fs.StringVar(&f.limits.Name, "name", "", "`NAME` The only node that may join with it; empty means any that the cluster does not have.")
	fs.StringSliceVar(&f.ranges, "cidr", nil, "`CIDR` Range in which the nodes' addresses must be; more than one with commas. Empty means any.")
	fs.StringVar(&f.server, "server", "", "`URL` Address at which the node reaches the API server; empty means this machine at --advertise-address.")
	fs.BoolVar(&f.script, "script", false, "Print a shell script for the machine, which needs no kthwd; with --name.")
	cli.OutputFlag(cmd, &f.output)
	kubeconfigFlag(fs, &f.kubeconfig)
	l.AddFlags(fs, "config", "data-dir", "bind-address", "advertise-address", "secure-port", "service-cluster-ip-range")
	return cmd
}

// createdToken is what kthwd node token create -o json prints.
type createdToken struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
	Server  string    `json:"server"`
	Hashes  []string  `json:"caHashes"`
	Name    string    `json:"name,omitempty"` // of the node that it is for
}

func (a *app) nodeTokenCreate(ctx context.Context, l *config.Loader, f *tokenFlags) (err error) {
	asJSON, err := cli.CheckOutput(f.output)
	if err != nil {
		return err
	}
	if f.limits.Ranges, err = workers.ParseRanges(f.ranges); err != nil {
		return cli.Usagef("--cidr: %w", err)
	}
	if err := f.limits.Check(f.ttl); err != nil {
		return advice.Usage(err)
	}
	if f.script && asJSON {
		return cli.Usagef("--script and -o json exclude each other")
	}
	c, err := a.ControllerHere(ctx, l)
	if err != nil {
		return err
	}
	server := cmp.Or(f.server, cli.APIURL(c))
	if u, err := url.Parse(server); err != nil || u.Scheme != "https" || u.Host == "" {
		return cli.Usagef("--server %q is no https URL", server)
	}
	ca, hashes, err := signingCA(c)
	if err != nil {
		return err
	}
	dns, err := clusterDNS(c.ServiceClusterIPRange)
	if err != nil {
		return err
	}
	cluster := workers.Cluster{DNS: []string{dns}, Domain: clusterDomain}
	description, err := workers.Describe(server, ca, cluster)
	if err != nil {
		return err
	}
	script := nodejoin.Script{CA: ca, Cluster: cluster, Options: nodejoin.Options{Server: server, Name: f.limits.Name, Files: nodejoin.DefaultFiles()}}
	if _, err := script.Text(); f.script && err != nil { // before there is a token
		return err
	}
	return a.withNodes(ctx, l, f.kubeconfig, nodeTimeout, func(ctx context.Context, n nodes) error {
		made, err := makeToken(ctx, n, f, description)
		if err != nil {
			return err
		}
		made.Server, made.Hashes, made.Name = server, hashes, f.limits.Name
		switch {
		case asJSON:
			return cli.WriteJSON(a.Out, made)
		case f.script:
			script.Token, script.Expires = made.Token, made.Expires
			lines, err := script.Text()
			fmt.Fprint(a.Out, lines)
			return err
		}
		return a.printToken(made, f)
	})
}

// clusterDomain is the guide's, and that of the issuer of kthwd's tokens.
const clusterDomain = "cluster.local"

// signingCA returns the CAs that nodes are to trust. It refuses a controller that cannot sign.
func signingCA(c config.Controller) (ca []byte, hashes []string, err error) {
	l := c.Layout()
	if err := cli.WantCA(l); err != nil {
		return nil, nil, err
	}
	if ca, err = os.ReadFile(l.CA()); err != nil {
		return nil, nil, err
	}
	if _, err := os.Stat(l.CAKey()); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, advice.With(fmt.Errorf("%s is kept elsewhere: kube-controller-manager cannot sign the certificates of nodes", l.CAKey()),
			"issue them where the key is with kthwd pki node, or copy the key to each controller and restart it")
	}
	hashes, err = workers.HashesOf(ca)
	return ca, hashes, err
}

// clusterDNS is the guide's address for the cluster's DNS service: the tenth of the range.
func clusterDNS(services string) (string, error) {
	first, _, _ := strings.Cut(services, ",")
	p, err := netip.ParsePrefix(first)
	if err != nil {
		return "", err
	}
	address := p.Masked().Addr()
	for range 10 {
		address = address.Next()
	}
	return address.String(), nil
}

// makeToken makes a token that works: the API server accepts it, and cluster-info is signed
// with it. Otherwise it is deleted.
func makeToken(ctx context.Context, n nodes, f *tokenFlags, description string) (made createdToken, err error) {
	if err := workers.Open(ctx, n.client); err != nil {
		return made, err
	}
	if err := workers.ForgetTokens(ctx, n.client, n.etcd); err != nil {
		return made, err
	}
	made.Token, made.Expires, err = workers.CreateToken(ctx, n.client, f.limits, f.ttl)
	if err != nil {
		return made, err
	}
	id, _, _ := strings.Cut(made.Token, ".")
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), acceptTimeout)
			defer cancel()
			err = errors.Join(err, workers.DeleteToken(ctx, n.client, n.etcd, id))
		}
	}()
	if err := accepted(ctx, n, made.Token); err != nil {
		return made, err
	}
	return made, workers.Publish(ctx, n.client, description, id)
}

const (
	acceptTimeout = 10 * time.Second // an API server learns of a token by a watch
	acceptPoll    = 200 * time.Millisecond
)

// accepted waits until the API server accepts the token.
func accepted(ctx context.Context, n nodes, token string) error {
	config := rest.AnonymousClientConfig(n.config)
	config.BearerToken = token
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	for until := time.Now().Add(acceptTimeout); ; supervise.Sleep(ctx, acceptPoll) {
		err = client.Discovery().RESTClient().Get().AbsPath("/api").Do(ctx).Error()
		switch {
		case err == nil, apierrors.IsForbidden(err):
			return nil
		case ctx.Err() != nil || time.Now().After(until):
			if apierrors.IsUnauthorized(err) {
				return advice.With(errors.New("the API server accepts no bootstrap tokens"), "start each controller with --kube-apiserver-arg=enable-bootstrap-token-auth=true, as kthwd does without profile cis")
			}
			return err
		}
	}
}

func (a *app) printToken(t createdToken, f *tokenFlags) error {
	words := []string{"kthwd node join --server=" + text.ShellWord(t.Server)}
	for _, h := range t.Hashes {
		words = append(words, "--ca-hash="+h)
	}
	if f.limits.Name != "" {
		words = append(words, "--name="+f.limits.Name)
	}
	words = append(words, "--token-file=-")
	whom := "one node"
	if f.limits.Nodes > 1 {
		whom = fmt.Sprintf("%d nodes", f.limits.Nodes)
	}
	_, err := fmt.Fprintf(a.Out, "The token is good for %s, for %v. On the machine that joins, as root:\n\n  %s\n\nIt reads this line from standard input:\n\n  %s\n",
		whom, f.ttl, strings.Join(words, " \\\n    "), t.Token)
	return err
}

func (a *app) nodeTokenListVerb(l *config.Loader) *cobra.Command {
	return nodeListing(a, l, &cobra.Command{
		Use:     "list [flags]",
		Short:   "List the tokens for worker nodes, without their secrets",
		Long:    "List the tokens with which worker nodes can join, without their secrets.",
		Example: "  kthwd node token list",
	}, workers.ListTokens, writeTokens)
}

func writeTokens(out io.Writer, list []workers.TokenInfo) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tEXPIRES\tNODES\tNAME\tCIDR\tUSED BY")
	for _, t := range list {
		var ranges []string
		for _, r := range t.Ranges {
			ranges = append(ranges, r.String())
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", text.Line(t.ID), t.Expires.UTC().Format(time.RFC3339), t.Nodes,
			cmp.Or(text.Line(t.Name), "any"), cmp.Or(strings.Join(ranges, ","), "any"), cmp.Or(text.Line(strings.Join(t.Used, " ")), "-"))
	}
	return w.Flush()
}

func (a *app) nodeTokenDeleteVerb(l *config.Loader) *cobra.Command {
	const usage = "ID"
	var kubeconfig string
	cmd := &cobra.Command{
		Use:     "delete " + usage + " [flags]",
		Short:   "Delete a token; the nodes that have joined with it stay",
		Long:    "Delete the token ID, the six characters before the dot. No further node can join with it; the\nnodes that have joined with it stay.",
		Example: "  kthwd node token delete a1b2c3",
		Args:    cli.WantArgs(1, 1, usage),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withNodes(cmd.Context(), l, kubeconfig, nodeTimeout, func(ctx context.Context, n nodes) error {
				id, _, _ := strings.Cut(args[0], ".") // who pastes the whole token means it, too
				if err := workers.DeleteToken(ctx, n.client, n.etcd, id); err != nil {
					return err
				}
				_, err := fmt.Fprintf(a.Out, "deleted  %s\n", text.Line(id))
				return err
			})
		},
	}
	kubeconfigFlag(cmd.Flags(), &kubeconfig)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}
