package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance"
	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/early"
	"kthwd/appliance/fakenode"
	"kthwd/appliance/logging"
	"kthwd/appliance/manifest"
	"kthwd/appliance/names"
	"kthwd/appliance/pki"
	"kthwd/appliance/scratch"
	"kthwd/appliance/text"
	linked "kthwd/appliance/version"
	"kthwd/cmd/kthwd/cli"
)

const (
	startEnds = 15 * time.Second // how long the end of a start may take before its directory is removed all the same
	tryRoom   = 128 << 20        // what a small test needs: etcd's files and a few thousand objects
	tryPorts  = 6
)

// trial is one run of kthwd try.
type trial struct {
	app   *app
	keep  bool
	crds  []string
	files []string
	nodes int

	args    []string // the command line; empty for none
	command string   // the path of its program
	env     []string // its environment, from before the control plane takes variables away
	signals chan os.Signal
	dir     *scratch.Dir
	objects []manifest.Object // definitions first
	log     *logging.Logs
}

func (a *app) tryVerb() *cobra.Command {
	t := &trial{app: a}
	cmd := &cobra.Command{
		Use:   "try [flags] [-- COMMAND [ARGUMENT...]]",
		Short: "Run a control plane that is thrown away, for tests",
		Long: "Run a control plane in a new directory, in memory if there is room, on free ports of\n" +
			"127.0.0.1, and COMMAND with KUBECONFIG set as soon as the API server is ready. It ends with\n" +
			"COMMAND and removes everything. The exit code is that of COMMAND: 128 and the number of the\n" +
			"signal that ended it, 127 not found, 126 not executable. Without COMMAND, print a line for\n" +
			"a shell that sets KUBECONFIG, and run until a signal. There is no fsync and no audit log.",
		Example: "  kthwd try -- kubectl get namespaces\n  kthwd try --crd=config/crd/bases -- go test ./...\n  kthwd try --ready-nodes=3 --apply=app.yaml -- ./test.sh",
		RunE: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); len(args) > 0 && dash != 0 {
				return advice.With(cli.Usagef("try: %q does not stand behind --", args[0]), "put -- before the command: kthwd try -- go test ./...")
			}
			t.args = args
			return t.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&t.keep, "keep", false, "Leave the directory, with the log and etcd's data.")
	flags.StringArrayVar(&t.crds, "crd", nil, "File or directory of CustomResourceDefinitions, established before COMMAND\nruns. May be given several times.")
	flags.StringArrayVar(&t.files, "apply", nil, "File or directory of objects, applied before COMMAND runs. May be given\nseveral times.")
	flags.IntVar(&t.nodes, "ready-nodes", 0, fmt.Sprintf("Number of fake nodes, %d at most. They stay Ready and their pods become\nRunning, but no container runs.", fakenode.Most))
	return cmd
}

func (t *trial) run(ctx context.Context) (err error) {
	early.Over()
	if !linked.Linked().Stamped {
		return advice.With(cli.Usagef("this binary lacks the version of its Kubernetes and will not serve"), "build it with make build")
	}
	if err := t.read(); err != nil {
		return err
	}
	t.env = os.Environ()
	t.signals = make(chan os.Signal, 16)
	signal.Notify(t.signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	// A pipe without a reader ends nothing here. Were the signal ignored, it would be so in the command, too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	places := scratch.Places()
	scratch.Sweep(places)
	if t.dir, err = scratch.New(places, tryRoom); err != nil {
		return err
	}
	defer func() {
		if left := t.dir.Remove(); left != nil {
			t.app.Report(left) // beside the exit code of the command
		}
	}()
	if t.keep {
		if err := t.dir.Keep(); err != nil {
			return err
		}
		fmt.Fprintln(t.app.Err, "kept: "+t.dir.Path)
	}
	if err := t.findCommand(); err != nil {
		return err
	}
	return t.serve(ctx)
}

// read reads everything that the command line names, before anything is made.
func (t *trial) read() error {
	var errs []error
	if t.nodes < 0 || t.nodes > fakenode.Most {
		errs = append(errs, cli.Usagef("--ready-nodes=%d: from 0 to %d", t.nodes, fakenode.Most))
	}
	crds, err := manifest.Read(t.crds, manifest.Definitions)
	errs = append(errs, advice.Usage(err))
	objects, err := manifest.Read(t.files, manifest.All)
	t.objects = append(crds, objects...)
	return errors.Join(append(errs, advice.Usage(err))...)
}

// findCommand finds the command before anything is started. Programs of upstream's that this
// machine lacks are those that this binary also is.
func (t *trial) findCommand() error {
	own, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Join(t.dir.Path, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		return err
	}
	for _, name := range names.All {
		if err := os.Symlink(own, filepath.Join(bin, name)); err != nil {
			return err
		}
	}
	path := bin
	if before := os.Getenv("PATH"); before != "" {
		path = before + string(os.PathListSeparator) + bin
	}
	t.set("PATH", path)
	if len(t.args) > 0 {
		t.command, err = scratch.Find(t.args[0], path)
	}
	return err
}

// set replaces a variable of the command's environment.
func (t *trial) set(name, value string) {
	t.env = slices.DeleteFunc(t.env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	t.env = append(t.env, name+"="+value)
}

// configuration is a control plane that lasts as long as a test. Only the API that upstream
// serves by default is there.
func (t *trial) configuration(ports []int) config.Controller {
	c := config.Default().Controller
	c.Name, c.DataDir = "try", filepath.Join(t.dir.Path, "data")
	c.BindAddress, c.AdvertiseAddress, c.HealthAddress = "127.0.0.1", "127.0.0.1", ""
	for i, port := range []*int{&c.SecurePort, &c.EtcdClientPort, &c.EtcdPeerPort, &c.ControllerManagerPort, &c.SchedulerPort, &c.JoinPort} {
		*port = ports[i]
	}
	c.EtcdArgs = []string{"unsafe-no-fsync"}
	for _, without := range []string{"audit-log-path", "audit-log-maxage", "audit-log-maxbackup", "audit-log-maxsize", "audit-policy-file", "runtime-config"} {
		c.APIServerArgs = append(c.APIServerArgs, without+"-")
	}
	return c
}

// serve starts the control plane, and ends when the command or the control plane does.
func (t *trial) serve(ctx context.Context) error {
	ports, err := scratch.Claim(tryPorts)
	if err != nil {
		return err
	}
	defer ports.Release()
	if err := t.openLog(); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	c := t.configuration(ports.Numbers)
	serving, ended := make(chan struct{}), make(chan struct{})
	var failure error
	go func() {
		defer close(ended)
		failure = appliance.Run(ctx, c, appliance.Options{
			Logs: t.log, Version: cli.Version, Started: t.app.started, Disposable: true, OnServing: func() { close(serving) },
		})
	}()
	err = t.use(ctx, c.Layout().Kubeconfig(pki.NameAdmin), serving, ended)
	select {
	case <-ended: // before anyone asked it to
		return errors.Join(failure, advice.With(errors.New("the control plane has ended"), "kthwd try --keep leaves its log, kthwd.log"))
	default:
	}
	var again <-chan os.Signal
	var late <-chan time.Time
	if !t.keep {
		select {
		case <-serving: // what is removed needs no end in order
			return err
		default: // but a start makes directories, also in the place of removed ones
			again, late = t.signals, time.After(startEnds)
		}
	}
	stop()
	select {
	case <-ended:
	case <-again:
	case <-late:
	}
	return err
}

// openLog makes the log of the control plane, which takes standard error from the code of others.
func (t *trial) openLog() error {
	file, err := os.OpenFile(filepath.Join(t.dir.Path, "kthwd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if t.log, err = logging.New(file, logging.Text, []string{"info"}); err != nil {
		return err
	}
	if t.app.catchStderr == nil {
		return nil
	}
	return t.app.catchStderr(t.log)
}

// use waits for the control plane, fills it and runs the command. It returns early when the
// control plane has ended.
func (t *trial) use(ctx context.Context, kubeconfig string, serving, ended <-chan struct{}) error {
	filled := make(chan error, 1)
	go func() {
		select {
		case <-serving:
			filled <- t.fill(ctx, kubeconfig)
		case <-ctx.Done():
		}
	}()
	select {
	case err := <-filled:
		if err != nil {
			return err
		}
	case <-ended:
		return nil
	case s := <-t.signals:
		return t.interrupted(s)
	}
	if t.command == "" {
		fmt.Fprintln(t.app.Out, "export KUBECONFIG="+text.ShellWord(kubeconfig))
		select {
		case <-t.signals:
		case <-ended:
		}
		return nil
	}
	t.set("KUBECONFIG", kubeconfig)
	command := scratch.Command{Path: t.command, Args: t.args, Env: t.env, Stdin: os.Stdin, Stdout: t.app.Out, Stderr: t.app.Err}
	code, err := command.Run(t.signals, ended)
	if err != nil {
		return err
	}
	return cli.Exited(code)
}

// interrupted is the end of a run that a signal ends before its command runs.
func (t *trial) interrupted(s os.Signal) error {
	if number, ok := s.(syscall.Signal); ok && t.command != "" {
		return cli.Exited(scratch.Signalled + int(number))
	}
	return nil
}

// fill makes what a command may expect: the namespace and the service account "default",
// which controllers would make a moment later, and what the command line names.
func (t *trial) fill(ctx context.Context, kubeconfig string) error {
	cluster, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	cluster.QPS, cluster.Burst, cluster.Proxy = -1, -1, http.ProxyURL(nil)
	client, err := kubernetes.NewForConfig(cluster)
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Namespaces().Create(ctx, &core.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceDefault}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	_, err = client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Create(ctx, &core.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	if t.nodes > 0 {
		nodes, err := fakenode.Create(ctx, client, t.nodes, linked.Linked().Kubernetes)
		if err != nil {
			return err
		}
		go nodes.Run(ctx)
	}
	return t.apply(ctx, cluster)
}

func (t *trial) apply(ctx context.Context, cluster *rest.Config) error {
	if len(t.objects) == 0 {
		return nil
	}
	client, err := manifest.New(cluster)
	if err != nil {
		return err
	}
	return client.Apply(ctx, t.objects)
}
