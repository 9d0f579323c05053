package lbtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Setup describes the task of a balancer.
type Setup struct {
	Dir       string // directory for its configuration files
	Namespace *Namespace
	Nobody    bool
	Listen    string
	Backends  []string
	HTTPS     bool   // check GET /readyz over TLS; otherwise check that a connection succeeds
	CA        string // CA certificate for HTTPS checks; "" verifies nothing
	Args      []string
	Resolver  string // DNS server that knows the names in Backends, for nginx and HAProxy; kthwd asks as the machine does
	Addresses int    // of each such name
	Late      bool   // the machine has Listen later only, which users of each balancer arrange in another way
	Reloads   bool   // Change will be called, so the backends are in a file
	Upgrades  bool   // Upgrade will be called
	// Descriptors is the limit of descriptors; 0 means that of this process.
	Descriptors int
}

// Balancer is a program under comparison.
type Balancer struct {
	Name string
	// Missing returns why it cannot run here; "" when it can.
	Missing func() string
	// Command writes its files and returns its command.
	Command func(t testing.TB, s Setup) Command
	// Reload makes a running one read the files of Command again.
	Reload syscall.Signal
	// Upgrade makes a running one replace itself, or its workers.
	Upgrade syscall.Signal
	// Version returns the first line of its version output.
	Version func() string
}

// Start starts the balancer.
func (b *Balancer) Start(t testing.TB, s Setup) *Process {
	t.Helper()
	c := b.Command(t, s)
	c.Name, c.Namespace, c.Nobody = b.Name, s.Namespace, s.Nobody
	if s.Descriptors > 0 {
		c.Argv = append([]string{"prlimit", fmt.Sprintf("--nofile=%d:%d", s.Descriptors, s.Descriptors)}, c.Argv...)
	}
	return Start(t, c)
}

// Change rewrites the files of a running balancer that was set up with Reloads, and
// makes it read them.
func (b *Balancer) Change(t testing.TB, p *Process, s Setup) {
	t.Helper()
	b.Command(t, s)
	p.Signal(t, b.Reload)
}

// Kthwd is the program named by KTHWD_LB_BIN or, without it, KTHWD_BIN.
var Kthwd = &Balancer{
	Name: "kthwd",
	Missing: func() string {
		if kthwdBinary() == "" {
			return "neither KTHWD_LB_BIN nor KTHWD_BIN names a program"
		}
		return ""
	},
	Command: kthwdCommand,
	Reload:  syscall.SIGHUP,
	Upgrade: syscall.SIGUSR2,
	Version: func() string { return firstLine(kthwdBinary(), "version") },
}

func kthwdBinary() string {
	if path := os.Getenv("KTHWD_LB_BIN"); path != "" {
		return path
	}
	return os.Getenv("KTHWD_BIN")
}

func kthwdCommand(t testing.TB, s Setup) Command {
	t.Helper()
	binary := kthwdBinary()
	if s.Nobody {
		copied := filepath.Join(s.Dir, "kthwd")
		if _, err := os.Stat(copied); err != nil {
			PublicCopy(t, s.Dir, binary, "kthwd")
		}
		binary = copied
	}
	argv := []string{binary, "--role=lb", "--listen=" + s.Listen}
	if s.Reloads {
		file := writeConfig(t, s.Dir, "kthwd.yaml", "backend: ["+strings.Join(s.Backends, ", ")+"]\n")
		argv = append(argv, "--config="+file)
	} else {
		for _, b := range s.Backends {
			argv = append(argv, "--backend="+b)
		}
	}
	if s.HTTPS {
		argv = append(argv, "--check=https")
		if s.CA != "" {
			argv = append(argv, "--backend-ca="+s.CA)
		}
	} else {
		argv = append(argv, "--check=tcp")
	}
	for _, shared := range []string{"--metrics-address", "--status-socket"} { // shared by all on one machine by default
		if !hasFlag(s.Args, shared) {
			argv = append(argv, shared+"=")
		}
	}
	return Command{Argv: append(argv, s.Args...)}
}

func hasFlag(args []string, name string) bool {
	for _, a := range args {
		if strings.HasPrefix(a, name+"=") {
			return true
		}
	}
	return false
}

// Nginx is Debian's nginx with the stream block of the guide.
var Nginx = &Balancer{
	Name: "nginx",
	Missing: func() string {
		if _, err := os.Stat(streamModule); err != nil {
			return "needs nginx with stream (Debian: nginx libnginx-mod-stream)"
		}
		return missing(nginxProgram, "nginx")
	},
	Command: nginxCommand,
	Reload:  syscall.SIGHUP,
	Upgrade: syscall.SIGHUP, // SIGUSR2 is ignored with daemon off; connections see no difference
	Version: func() string { return firstLine(nginxProgram, "-v") },
}

const (
	nginxProgram   = "/usr/sbin/nginx"
	haproxyProgram = "/usr/sbin/haproxy"
	streamModule   = "/usr/lib/nginx/modules/ngx_stream_module.so"
)

func nginxCommand(t testing.TB, s Setup) Command {
	t.Helper()
	var servers strings.Builder
	resolve := ""
	if s.Resolver != "" && nginxFollows() {
		fmt.Fprintf(&servers, "    zone kubernetes 64k;\n    resolver %s valid=1s;\n", s.Resolver)
		resolve = " resolve"
	}
	for _, b := range s.Backends {
		fmt.Fprintf(&servers, "    server %s%s;\n", b, resolve)
	}
	if s.Late { // it has no option for it; this is what users of keepalived set
		s.Namespace.Sysctl(t, "net/ipv4/ip_nonlocal_bind", "1")
	}
	user := ""
	if os.Geteuid() == 0 && !s.Nobody {
		user = "user root;\n"
	}
	config := writeConfig(t, s.Dir, "nginx.conf", fmt.Sprintf(`load_module %s;
%sdaemon off;
pid %s;
error_log stderr;
worker_processes auto;
events {
  worker_connections %d;
}
stream {
  upstream kubernetes {
%s  }
  server {
    listen %s;
    proxy_pass kubernetes;
  }
}
`, streamModule, user, filepath.Join(s.Dir, "nginx.pid"), descriptorLimit(), servers.String(), s.Listen))
	return Command{Argv: []string{nginxProgram, "-p", s.Dir, "-e", "stderr", "-c", config}, Stop: syscall.SIGTERM}
}

// nginxFollows reports whether this nginx follows the addresses of a name in an upstream block,
// which the free one does from 1.27.3 on. Before, it uses all that the name has at the start.
func nginxFollows() bool {
	_, text, _ := strings.Cut(firstLine(nginxProgram, "-v"), "nginx/")
	var major, minor, patch int
	if n, _ := fmt.Sscanf(text, "%d.%d.%d", &major, &minor, &patch); n < 3 {
		return false
	}
	return slices.Compare([]int{major, minor, patch}, []int{1, 27, 3}) >= 0
}

// Haproxy is Debian's HAProxy in TCP mode with checks.
var Haproxy = &Balancer{
	Name:    "haproxy",
	Missing: func() string { return missing(haproxyProgram, "haproxy") },
	Command: haproxyCommand,
	Reload:  syscall.SIGUSR2,
	Upgrade: syscall.SIGUSR2,
	Version: func() string { return firstLine(haproxyProgram, "-v") },
}

func haproxyCommand(t testing.TB, s Setup) Command {
	t.Helper()
	check, option := "check", ""
	if s.HTTPS {
		check, option = "check check-ssl verify none", "\n  option httpchk GET /readyz\n  http-check expect status 200"
	}
	var servers strings.Builder
	resolvers, bind := "", s.Listen
	if s.Resolver != "" { // else it takes the first address of a name, and keeps it
		resolvers = fmt.Sprintf("\nresolvers names\n  nameserver n %s\n  timeout resolve 1s\n  timeout retry 1s\n  hold valid 1s", s.Resolver)
	}
	for i, b := range s.Backends {
		if s.Resolver != "" {
			fmt.Fprintf(&servers, "  server-template s%d- %d %s %s resolvers names init-addr none\n", i, s.Addresses, b, check)
		} else {
			fmt.Fprintf(&servers, "  server s%d %s %s\n", i, b, check)
		}
	}
	if s.Late {
		bind += " transparent"
	}
	maxconn := (descriptorLimit() - 500) / 2
	if s.Descriptors > 0 {
		maxconn = (s.Descriptors - 40) / 2 // it refuses to start with more than the limit allows
	}
	config := writeConfig(t, s.Dir, "haproxy.cfg", fmt.Sprintf(`global
  maxconn %d
  stats socket %s mode 600 level admin
defaults
  mode tcp
  option redispatch
  timeout connect 5s
  timeout client 1h
  timeout server 1h%s
frontend apiservers
  bind %s
  default_backend controllers
backend controllers
  balance roundrobin%s
%s`, maxconn, filepath.Join(s.Dir, "haproxy.sock"), resolvers, bind, option, servers.String()))
	argv := []string{haproxyProgram, "-db", "-f", config}
	if s.Reloads || s.Upgrades {
		argv = append(argv, "-W") // a master that can start another worker
	}
	return Command{Argv: argv}
}

// descriptorLimit is the limit of descriptors of a new process; both peers are
// configured to use all of it.
func descriptorLimit() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(limit.Cur, 1<<16))
}

func missing(program, pkg string) string {
	if _, err := os.Stat(program); err != nil {
		return "needs " + program + " (Debian: " + pkg + ")"
	}
	return ""
}

func writeConfig(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// firstLine returns the first line of a program's output.
func firstLine(program string, args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}
