// Package kthwtest runs the real kthwd for tests.
//
//	c := kthwtest.Start(t, kthwtest.Options{})
//	kthwtest.WaitFor(t, "default service account", time.Minute, func() error {
//		_, err := c.Client(t).CoreV1().ServiceAccounts("default").Get(t.Context(), "default", metav1.GetOptions{})
//		return err
//	})
//
// Start builds the binary once per test run (make build; KTHWD_BIN names an existing
// one), gives the controller its own directory and free ports, waits until it is
// ready, and stops it when the test ends. Nothing here sleeps to synchronise: WaitFor
// polls a condition, and fails with its name and the last reason.
package kthwtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
)

// Root is the top of the checkout.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	if filepath.IsAbs(file) {
		return filepath.Dir(filepath.Dir(filepath.Dir(file)))
	}
	// Built with -trimpath: tests run in their package's directory.
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, missing := os.Stat(filepath.Join(dir, "go.mod")); missing == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return "."
}

var build struct {
	once sync.Once
	err  error
}

// Installed is the path of a copy of a program, as an installation writes it, for measurements: the
// page cache has a file that the linker has just written in larger pieces, of which the kernel maps
// more at once, so that the RSS of each process is higher by tens of MiB.
func Installed(t testing.TB, program string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(program))
	if out, err := exec.Command("install", "-m", "0755", program, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// Binary is the path of the kthwd that make build makes.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("KTHWD_BIN"); path != "" {
		return path
	}
	build.once.Do(func() {
		out, err := exec.Command("make", "-s", "-C", Root(), "build").CombinedOutput()
		if err != nil {
			build.err = fmt.Errorf("make build: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return filepath.Join(Root(), "bin", "kthwd")
}

// Previous is the path of a kthwd with the minor of Kubernetes and etcd before this one's, which
// make previous builds. A test is skipped without it.
func Previous(t testing.TB) string {
	t.Helper()
	path := os.Getenv("KTHWD_PREVIOUS")
	if path == "" {
		const lacks = "KTHWD_PREVIOUS names no kthwd of the minor before: make previous, then KTHWD_PREVIOUS=$PWD/bin/previous/kthwd"
		if os.Getenv("KTHWD_NO_SKIP") != "" {
			t.Fatal(lacks)
		}
		t.Skip(lacks)
	}
	return path
}

// Tool builds a program of the project's go.mod, for example
// "k8s.io/kubernetes/cmd/kubectl", with the versions stamped in, once per
// test run, and returns its path. KTHWD_TOOLS names a directory that has the programs
// already.
func Tool(t testing.TB, pkg string) string {
	t.Helper()
	if dir := os.Getenv("KTHWD_TOOLS"); dir != "" {
		return filepath.Join(dir, filepath.Base(pkg))
	}
	path := filepath.Join(Root(), "bin", "tools", filepath.Base(pkg))
	tools.Lock()
	defer tools.Unlock()
	if tools.built[pkg] {
		return path
	}
	out, err := exec.Command("make", "-s", "-C", Root(), "tool", "PKG="+pkg, "OUT="+path).CombinedOutput()
	if err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	tools.built[pkg] = true
	return path
}

var tools = struct {
	sync.Mutex
	built map[string]bool
}{built: map[string]bool{}}

// Kubectl is the real kubectl of the same Kubernetes version.
func Kubectl(t testing.TB) string { return Tool(t, "k8s.io/kubernetes/cmd/kubectl") }

// Options configures a controller. The zero value is a single controller on free ports
// of 127.0.0.1.
type Options struct {
	Dir  string   // data directory; empty: a new one
	Args []string // further arguments, after those from Start
	Env  []string // further environment
	// Binary is the kthwd to run; empty: the one of Binary.
	Binary string
	// Wrap is put before the command line: {"ip", "netns", "exec", "x"}.
	Wrap []string
	// Ports are used instead of free ones when set: a restart on the same directory.
	Ports *Ports
	// NoWait returns as soon as the process runs.
	NoWait bool
	// Address is what the controller listens on and advertises; empty: 127.0.0.1.
	Address string
	// Plain omits the arguments from Start: the controller has the guide's paths and
	// ports, and Args. For machines that belong to the test.
	Plain bool
	// File is a configuration file that replaces the arguments from Start, except the
	// metrics address. It may be a load balancer's.
	File string
}

// Ports are the ports of one controller.
type Ports struct{ Secure, EtcdClient, EtcdPeer, ControllerManager, Scheduler, Health, Metrics, Join int }

// Controller is a running kthwd.
type Controller struct {
	Dir     string
	Address string
	Ports   Ports
	Cmd     *exec.Cmd
	Log     *Log

	plain  bool
	file   string
	exited chan struct{}
	err    error
}

// Start runs a controller and waits until it is ready. It is stopped when the
// test ends, and its log is shown when the test failed.
func Start(t testing.TB, o Options) *Controller {
	t.Helper()
	c := run(t, o)
	t.Cleanup(func() { c.cleanup(t) })
	if !o.NoWait {
		c.WaitReady(t)
	}
	return c
}

// run runs a controller that nobody stops.
func run(t testing.TB, o Options) *Controller {
	t.Helper()
	c := &Controller{Dir: o.Dir, Address: o.Address, Log: &Log{}, plain: o.Plain, file: o.File, exited: make(chan struct{})}
	if c.Dir == "" && o.Plain {
		c.Dir = config.Default().Controller.DataDir
	}
	if c.Dir == "" {
		c.Dir = filepath.Join(t.TempDir(), "data")
	}
	if c.Address == "" {
		c.Address = "127.0.0.1"
	}
	switch {
	case o.Ports != nil:
		c.Ports = *o.Ports
	case o.Plain:
		c.Ports = guidePorts()
	default:
		c.Ports = FreePorts(t, c.Address)
	}
	if o.Binary == "" {
		o.Binary = Binary(t)
	}
	argv := append(append(append([]string{}, o.Wrap...), o.Binary), append(c.Args(), o.Args...)...)
	c.Cmd = exec.Command(argv[0], argv[1:]...)
	c.Cmd.Env = append(os.Environ(), o.Env...)
	c.Cmd.Stdout, c.Cmd.Stderr = c.Log, c.Log
	if err := c.Cmd.Start(); err != nil {
		t.Fatalf("start kthwd: %v", err)
	}
	go func() {
		c.err = c.Cmd.Wait()
		close(c.exited)
	}()
	return c
}

// guidePorts are the default ports of a controller.
func guidePorts() Ports {
	d := config.Default().Controller
	return Ports{d.SecurePort, d.EtcdClientPort, d.EtcdPeerPort, d.ControllerManagerPort, d.SchedulerPort, 80, 10300, d.JoinPort}
}

// Args are the flags from Start: role, directory, addresses and ports.
func (c *Controller) Args() []string {
	if c.plain {
		return []string{"--role=controller"}
	}
	at := func(port int) string { return net.JoinHostPort(c.Address, strconv.Itoa(port)) }
	if c.file != "" {
		return []string{"--config=" + c.file, "--metrics-address=" + at(c.Ports.Metrics), "--metrics-insecure"}
	}
	return []string{
		"--role=controller", "--data-dir=" + c.Dir, "--name=" + "c0",
		"--bind-address=" + c.Address, "--advertise-address=" + c.Address,
		"--secure-port=" + strconv.Itoa(c.Ports.Secure),
		"--etcd-client-port=" + strconv.Itoa(c.Ports.EtcdClient),
		"--etcd-peer-port=" + strconv.Itoa(c.Ports.EtcdPeer),
		"--controller-manager-port=" + strconv.Itoa(c.Ports.ControllerManager),
		"--scheduler-port=" + strconv.Itoa(c.Ports.Scheduler),
		"--join-port=" + strconv.Itoa(c.Ports.Join),
		"--health-address=" + at(c.Ports.Health),
		"--metrics-address=" + at(c.Ports.Metrics), "--metrics-insecure",
	}
}

func (c *Controller) cleanup(t testing.TB) {
	if err := c.end(); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("log of kthwd in %s:\n%s", c.Dir, c.Log.Tail(200))
	}
}

// end stops the process if it runs, and returns what is wrong with its end and its log.
func (c *Controller) end() (err error) {
	if !c.Exited() {
		_ = c.Cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-c.exited:
		case <-time.After(2 * time.Minute):
			err = errors.New("kthwd did not stop within 2 minutes of SIGTERM")
			_ = c.Cmd.Process.Kill()
			<-c.exited
		}
	}
	if n := c.Log.UnloggedLines(); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d lines of kthwd's log are not its own", n))
	}
	return err
}

// Signal sends a signal to the process.
func (c *Controller) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := c.Cmd.Process.Signal(s); err != nil {
		t.Fatalf("signal %v: %v", s, err)
	}
}

// Exited reports whether the process has ended.
func (c *Controller) Exited() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

// Wait waits for the end of the process and returns its exit code (-1: killed by a signal).
func (c *Controller) Wait(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-c.exited:
		return c.Cmd.ProcessState.ExitCode()
	case <-time.After(within):
		t.Fatalf("kthwd has not ended within %v; its log:\n%s", within, c.Log.Tail(60))
		return 0
	}
}

// WaitReady waits until every component is ready or standby.
func (c *Controller) WaitReady(t testing.TB) {
	t.Helper()
	WaitFor(t, "controller ready", 5*time.Minute, func() error {
		if c.Exited() {
			t.Fatalf("kthwd ended before it was ready: %v\n%s", c.err, c.Log.Tail(60))
		}
		r, err := c.Status()
		if err == nil && !r.Ready {
			err = errors.New(r.Reason)
		}
		return err
	})
}

// Status reads the state record from the metrics address.
func (c *Controller) Status() (status.Report, error) {
	var r status.Report
	client := http.Client{Timeout: time.Minute}
	resp, err := client.Get("http://" + net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.Metrics)) + "/status")
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	return r, json.NewDecoder(resp.Body).Decode(&r)
}

// Kubeconfig is the path of a kubeconfig made by kthwd: "admin", "kube-scheduler", …
func (c *Controller) Kubeconfig(name string) string {
	return filepath.Join(c.Dir, name+".kubeconfig")
}

// RESTConfig is the configuration of the administrator's client, without client-side limits.
func (c *Controller) RESTConfig(t testing.TB) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig("admin"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = -1, -1
	return config
}

// File is the process's configuration file, from Options.
func (c *Controller) File() string { return c.file }

// Client is the administrator's client.
func (c *Controller) Client(t testing.TB) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(c.RESTConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Etcd is a client of this member with its own certificate, as etcdctl would be.
func (c *Controller) Etcd(t testing.TB) *clientv3.Client {
	t.Helper()
	config, err := pki.ClientTLS(pki.Layout{Dir: c.Dir})
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{fmt.Sprintf("https://%s:%d", c.Address, c.Ports.EtcdClient)}, TLS: config,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// Kubectl runs the real kubectl as the administrator and returns what it printed.
func (c *Controller) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.TryKubectl(t, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// TryKubectl is Kubectl for a command that may fail.
func (c *Controller) TryKubectl(t testing.TB, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(Kubectl(t), append([]string{"--kubeconfig", c.Kubeconfig("admin")}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
