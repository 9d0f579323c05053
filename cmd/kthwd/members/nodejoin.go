package members

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/nodejoin"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

// maxToken bounds a file with a token.
const maxToken = 4 << 10

// nodeJoinFlags are the flags of kthwd node join.
type nodeJoinFlags struct {
	nodejoin.Options
	from, tokenFile string
	plan            bool
}

func (a *app) nodeJoinVerb() *cobra.Command {
	f := &nodeJoinFlags{}
	f.Files = nodejoin.DefaultFiles()
	cmd := &cobra.Command{
		Use:   "join [flags]",
		Short: "Make this machine a worker node, up to the start of its kubelet",
		Long: "Make this machine a worker node of a cluster, with a token of kthwd node token create. The\n" +
			"command verifies the cluster by the hash of its CA and by a signature of the token, lets the\n" +
			"cluster try the request that the kubelet will make, and then writes the CA, a bootstrap\n" +
			"kubeconfig, the kubelet's configuration and its systemd unit. Nothing is written if\n" +
			"anything is wrong. The kubelet asks for its certificates itself, and renews them.\n\n" +
			"The kubelet and a container runtime must be installed; the last step is to start them.",
		Example: "  kthwd node join --server=https://10.0.1.48:6443 --ca-hash=sha256:… --token-file=-\n" +
			"  kthwd node token create -o json | ssh worker-0 kthwd node join --from=-",
		Args: cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.nodeJoin(cmd.Context(), f, cmd.InOrStdin()) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.from, "from", "", "`FILE` File that kthwd node token create -o json has written, in place of --server, --ca-hash and the token; - means standard input.")
	fs.StringVar(&f.Server, "server", "", "`URL` The API server, or a load balancer in front of it.")
	fs.StringVar(&f.Token, "token", "", "`TOKEN` The token; other users of this machine can see it on the command line.")
	fs.StringVar(&f.tokenFile, "token-file", "", "`FILE` File with the token in its first line; - means standard input.")
	fs.StringSliceVar(&f.Hashes, "ca-hash", nil, "`HASH` Hash of the cluster's CA, sha256: and 64 digits; more than one with commas.")
	fs.StringVar(&f.Name, "name", "", "`NAME` Name of the node; empty means the host name in lower case.")
	fs.StringVar(&f.Files.NodeIP, "node-ip", f.Files.NodeIP, "`ADDRESS` Address of the node; empty means the one that the kubelet finds.")
	fs.StringVar(&f.Files.KubeletDir, "kubelet-dir", f.Files.KubeletDir, "`DIR` Directory of the kubelet, for its configuration, kubeconfigs and certificates.")
	fs.StringVar(&f.Files.CA, "ca-file", f.Files.CA, "`FILE` File for the cluster's CA.")
	fs.StringVar(&f.Files.Unit, "unit", f.Files.Unit, "`FILE` The kubelet's systemd unit; empty means none.")
	fs.StringVar(&f.Files.Kubelet, "kubelet", f.Files.Kubelet, "`FILE` The kubelet's program, for the unit.")
	fs.StringVar(&f.Files.Runtime, "container-runtime-endpoint", f.Files.Runtime, "`URL` Socket of the container runtime.")
	fs.StringVar(&f.Files.CgroupDriver, "cgroup-driver", f.Files.CgroupDriver, "`NAME` The container runtime's cgroup driver: systemd or cgroupfs.")
	fs.BoolVar(&f.plan, "plan", false, "Verify everything, print what would be written, and write nothing.")
	return cmd
}

func (a *app) nodeJoin(ctx context.Context, f *nodeJoinFlags, in io.Reader) error {
	if err := f.complete(a, in); err != nil {
		return err
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	p, err := nodejoin.Prepare(ctx, f.Options)
	if err != nil {
		return err
	}
	if _, err := os.Stat(f.Files.Kubelet); err != nil && f.Files.Unit != "" {
		a.Warn(fmt.Sprintf("%s does not exist: install the kubelet there, or name it with --kubelet", f.Files.Kubelet))
	}
	if f.plan {
		for _, file := range p.Files {
			fmt.Fprintf(a.Out, "%s  %s  %04o\n", map[bool]string{true: "keep", false: "make"}[file.Kept], file.Path, file.Mode)
		}
		return nil
	}
	made, err := p.Write()
	if err != nil {
		return err
	}
	for _, path := range made {
		fmt.Fprintf(a.Out, "made  %s\n", path)
	}
	if f.Files.Unit == "" {
		return nil
	}
	_, err = fmt.Fprintf(a.Out, "The cluster accepts this machine as the node %s. Before the token expires, start its kubelet:\n\n  systemctl daemon-reload && systemctl enable --now kubelet\n", text.Line(f.Name))
	return err
}

// complete reads the token and the name of the machine.
func (f *nodeJoinFlags) complete(a *app, in io.Reader) (err error) {
	if f.from != "" {
		return f.read(in)
	}
	switch {
	case f.Server == "":
		return advice.With(cli.Usagef("--server is missing"), "copy the command that kthwd node token create has printed")
	case f.Token != "" && f.tokenFile != "":
		return cli.Usagef("--token and --token-file: give one of them")
	case f.Token != "":
		a.Warn("a token on the command line is visible to every user of this machine; --token-file=- reads it from standard input")
	case f.tokenFile == "":
		return advice.With(cli.Usagef("no token given"), "--token-file=- reads it from standard input")
	default:
		if f.Token, err = tokenIn(f.tokenFile, in); err != nil {
			return err
		}
	}
	return f.named()
}

// named takes the name of the machine for a node without one.
func (f *nodeJoinFlags) named() (err error) {
	if f.Name == "" {
		f.Name, err = os.Hostname()
		f.Name = strings.ToLower(f.Name)
	}
	return err
}

// read takes over what kthwd node token create -o json has written.
func (f *nodeJoinFlags) read(in io.Reader) error {
	if f.Server != "" || f.Token != "" || f.tokenFile != "" || len(f.Hashes) > 0 {
		return cli.Usagef("--from has the server, the hash and the token: leave out --server, --ca-hash, --token and --token-file")
	}
	data, err := upTo(maxToken, f.from, in)
	if err != nil {
		return err
	}
	var made createdToken
	if err := json.Unmarshal(data, &made); err != nil || made.Token == "" {
		return advice.With(advice.Usage(fmt.Errorf("--from=%s: this is not the output of kthwd node token create -o json", f.from)), "give the token alone with --token-file")
	}
	f.Server, f.Token, f.Hashes, f.Name = made.Server, made.Token, made.Hashes, cmp.Or(f.Name, made.Name)
	return f.named()
}

// upTo reads a file; - is standard input.
func upTo(limit int64, path string, in io.Reader) ([]byte, error) {
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in = file
	}
	return io.ReadAll(io.LimitReader(in, limit))
}

// tokenIn reads the token in the first line of a file.
func tokenIn(path string, in io.Reader) (string, error) {
	data, err := upTo(maxToken, path, in)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimSpace(line); line == "" {
		return "", advice.Usage(errors.New("the first line has no token"))
	}
	return line, nil
}
