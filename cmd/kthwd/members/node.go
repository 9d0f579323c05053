package members

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubectl/pkg/drain"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/etcdsocket"
	"kthwd/appliance/pki"
	"kthwd/appliance/text"
	"kthwd/appliance/workers"
	"kthwd/cmd/kthwd/cli"
)

// nodeTimeout bounds a verb about nodes that does not drain.
const nodeTimeout = 30 * time.Second

func (a *app) nodeVerb(l *config.Loader) *cobra.Command {
	cmd := cli.Group("node", "Join, list and remove worker nodes")
	cmd.AddCommand(a.nodeTokenVerb(l), a.nodeJoinVerb(), a.nodeListVerb(l), a.nodeRemoveVerb(l))
	return cmd
}

// nodes is what a verb about nodes works with.
type nodes struct {
	client kubernetes.Interface // as administrator
	etcd   *clientv3.Client     // of the member that runs here
	config *rest.Config         // of client
}

// kubeconfigFlag is for clusters whose administrator's kubeconfig is kept elsewhere.
func kubeconfigFlag(fs *pflag.FlagSet, kubeconfig *string) {
	fs.StringVar(kubeconfig, "kubeconfig", "", "`FILE` Kubeconfig of an administrator; empty means admin.kubeconfig in the data directory, with the API server of this machine.")
}

// withNodes calls use with clients of the controller that runs on the data directory.
func (a *app) withNodes(ctx context.Context, l *config.Loader, kubeconfig string, limit time.Duration, use func(context.Context, nodes) error) error {
	t, err := a.Target(l)
	if err != nil {
		return err
	}
	if t.Dir == "" {
		return advice.With(cli.Usagef("a load balancer has no data directory"), "run this on a controller")
	}
	path := cmp.Or(kubeconfig, t.Layout().Kubeconfig(pki.NameAdmin))
	if kubeconfig == "" {
		if err := t.Readable(path); err != nil {
			return err
		}
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	etcd, err := etcdsocket.Connect(ctx, t.Layout().EtcdSocket())
	if err != nil {
		return err
	}
	defer etcd.Close()
	admin, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	admin.UserAgent = "kthwd"
	if kubeconfig == "" || admin.Proxy == nil {
		admin.Proxy = http.ProxyURL(nil) // nothing within the cluster goes through a proxy of the environment
	}
	if kubeconfig == "" {
		c, err := a.ControllerHere(ctx, l)
		if err != nil {
			return err
		}
		// The file's server may be a load balancer with a CA of its own, and it may be down.
		admin.Host = c.LocalServer()
		admin.CAFile, admin.CAData, admin.ServerName, admin.Insecure = c.Layout().CA(), nil, "", false
	}
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return use(ctx, nodes{client: client, etcd: etcd, config: admin})
}

func (a *app) nodeListVerb(l *config.Loader) *cobra.Command {
	return nodeListing(a, l, &cobra.Command{
		Use:   "list [flags]",
		Short: "List the worker nodes, and how each has joined",
		Long: "List the worker nodes, with the token that each has joined with. A node without one came\n" +
			"with the files of kthwd pki node, or another way.",
		Example: "  kthwd node list\n  kthwd node list -o json",
	}, workers.ListNodes, writeNodes)
}

// nodeListing completes a verb that prints a list as a table or as JSON.
func nodeListing[T any](a *app, l *config.Loader, cmd *cobra.Command, list func(context.Context, kubernetes.Interface, *clientv3.Client) ([]T, error), table func(io.Writer, []T) error) *cobra.Command {
	var output, kubeconfig string
	cmd.Args = cli.NoVerb
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		asJSON, err := cli.CheckOutput(output)
		if err != nil {
			return err
		}
		return a.withNodes(cmd.Context(), l, kubeconfig, nodeTimeout, func(ctx context.Context, n nodes) error {
			all, err := list(ctx, n.client, n.etcd)
			switch {
			case err != nil:
				return err
			case asJSON:
				return cli.WriteJSON(a.Out, all)
			}
			return table(a.Out, all)
		})
	}
	cli.OutputFlag(cmd, &output)
	kubeconfigFlag(cmd.Flags(), &kubeconfig)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func writeNodes(out io.Writer, list []workers.Node) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tREADY\tADDRESS\tKUBELET\tTOKEN\tSINCE")
	for _, n := range list {
		ready := "no"
		if n.Ready {
			ready = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", text.Line(n.Name), ready, cmp.Or(text.Line(n.Address), "-"), cmp.Or(text.Line(n.Kubelet), "-"),
			cmp.Or(text.Line(n.Token), "-"), n.Since.UTC().Format(time.RFC3339))
	}
	return w.Flush()
}

func (a *app) nodeRemoveVerb(l *config.Loader) *cobra.Command {
	const usage = "NAME"
	var kubeconfig string
	var drained bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "remove " + usage + " [flags]",
		Short: "Remove a worker node, and refuse its certificates from then on",
		Long: "Remove the node NAME: its Node, its lease and its certificate requests are deleted. The API\n" +
			"servers refuse every certificate of system:node:NAME that was issued before, also on open\n" +
			"connections. Other ports that trust the cluster's CA do not know of it. A machine can join\n" +
			"under the name again, with a new token, six minutes later.\n\n" +
			"With --drain, the pods are evicted first, as kubectl drain does; if that fails, nothing is\n" +
			"removed. Pods of DaemonSets stay; emptyDir volumes are lost.",
		Example: "  kthwd node remove worker-0 --drain",
		Args:    cli.WantArgs(1, 1, usage),
		RunE: func(cmd *cobra.Command, args []string) error {
			limit := nodeTimeout
			if drained {
				limit += timeout
			}
			return a.withNodes(cmd.Context(), l, kubeconfig, limit, func(ctx context.Context, n nodes) error {
				if drained {
					if err := a.drain(ctx, n, args[0], timeout); err != nil {
						return err
					}
				}
				if err := workers.RemoveNode(ctx, n.client, n.etcd, args[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintf(a.Out, "removed  %s\n", text.Line(args[0]))
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&drained, "drain", false, "Evict the node's pods first.")
	cmd.Flags().DurationVar(&timeout, "drain-timeout", 5*time.Minute, "`DURATION` How long the pods may take.")
	kubeconfigFlag(cmd.Flags(), &kubeconfig)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

// drain evicts the pods of a node, which stays cordoned if that fails.
func (a *app) drain(ctx context.Context, n nodes, name string, timeout time.Duration) error {
	said := lineWriter{a.Err}
	h := &drain.Helper{
		Ctx: ctx, Client: n.client, Force: true, GracePeriodSeconds: -1, IgnoreAllDaemonSets: true, DeleteEmptyDirData: true,
		Timeout: timeout, Out: said, ErrOut: said,
	}
	node, err := n.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return advice.With(err, "kthwd node list shows the nodes that there are; without --drain, remove one whose Node is gone")
	}
	if err := drain.RunCordonOrUncordon(h, node, true); err != nil {
		return fmt.Errorf("cordon %s: %w", name, err)
	}
	if err := drain.RunNodeDrain(h, name); err != nil {
		return advice.With(fmt.Errorf("drain %s: %w", name, err), "the node is cordoned and nothing was removed; run this again, or kthwd kubectl uncordon "+text.ShellWord(name))
	}
	return nil
}

// lineWriter writes lines of others, without characters that move the terminal's cursor.
type lineWriter struct{ out io.Writer }

func (w lineWriter) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if _, err := fmt.Fprintln(w.out, text.Line(line)); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
