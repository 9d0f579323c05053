package eject

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"kthwd/appliance/config"
	"kthwd/appliance/explain"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/text"
)

// loss is what kthwd does and the programs, or nginx, do not.
type loss struct{ of, what string }

// controllerLost is what no flag and no file expresses. Flags of the programs express the rest.
var controllerLost = []loss{
	{program.Etcd, "a lone member elects itself after etcd's usual second, not after a quarter of it"},
	{program.Etcd, "its HTTP API (/v3/) is off: etcd's own does not work while its ports accept certain names only. etcdctl does"},
	{program.Etcd, "a stop does not hold writes while it hands over the leadership, and a stop without a quorum or on a full disk may not end in order"},
	{program.Etcd, "member list, add and remove, a recovery, room in the database: use etcdctl and etcdutl. No join port, no tokens"},
	{program.APIServer, "KthwdControllerIdentity is gone: a certificate request with a controller's name (kubernetes) is signed if somebody approves it. Where etcd has no CA of its own, look at such requests"},
	{program.APIServer, "revoked certificates, and those of removed nodes, are accepted again until they expire, and new ones are in no ledger. kthwd kubeconfig list says which are revoked, while kthwd runs: take the rights of these users from every binding first"},
	{program.APIServer, "the records of clients without credentials are in audit.log with all others, and can push them out of it"},
	{program.APIServer, "writes of a kube-controller-manager or kube-scheduler whose lease has ended are not refused"},
	{program.APIServer, "bootstrap roles, the guide's system:kube-apiserver-to-kubelet and kthwd:cluster-admins stay as they are in the cluster. A removed bootstrap role comes back at kube-apiserver's next start only, the other two never"},
	{program.APIServer, "a stop does not wait until the other controllers have taken over its clients, beyond its flags for a stop"},
	{program.ControllerManager, "a lost lease, an exit or a panic ends the process, and systemd starts it again after 5 s"},
	{program.Scheduler, "a lost lease, an exit or a panic ends the process, and systemd starts it again after 5 s"},
	{"all", "memory: four processes in place of one, each with Go's own garbage collection; kthwd tunes one for all"},
	{"all", "no scheduled backup, no kthwd status, findings, metrics on 10300, watchdog, events and warnings of certificates that expire, no comparison of the controllers' flags"},
	{"all", "no copy of the data before another version opens them: make one before an upgrade"},
	{"all", "variables: kthwd keeps addresses of the cluster from a proxy, and KUBE_* and ETCD_* from the programs. Set neither in the units"},
}

// lbLost is what nginx does not do.
var lbLost = []loss{
	{"nginx", "no checks of the backends: one counts as gone for 10 s after a connection to it has failed, and one that is about to leave still gets connections"},
	{"nginx", "no hold of clients while no backend answers, no second attempt beside a slow one, no slow start, no drain of a backend's connections"},
	{"nginx", "no discovery; names of backends are looked up once, at the start"},
	{"nginx", "no limits by source, no limit for the first byte, no access log with the source's port, no metrics, no status"},
	{"nginx", "listen PORT is for IPv4 only, as in the guide; add listen [::]:PORT for IPv6"},
}

// bridgeLost is what nginx does not do as the health bridge.
var bridgeLost = []loss{
	{"nginx", "the health bridge gives nginx's page with 502 in place of 503 and a reason, and each request of a client is one to the API server"},
}

type page struct{ strings.Builder }

func (p *page) line(format string, a ...any) { fmt.Fprintf(p, format+"\n", a...) }

func (p *page) commands(all ...string) {
	for _, c := range all {
		p.line("    %s", c)
	}
	p.line("")
}

// step is a heading with a number of its own.
type steps struct {
	page
	n int
}

func (s *steps) step(heading string) {
	s.n++
	s.line("%d. %s\n", s.n, heading)
}

// readme is README.txt: the steps in their order, what is lost, the way back.
func (in Input) readme(files []File, lost []loss) []byte {
	s := &steps{}
	has := func(path string) bool {
		return slices.ContainsFunc(files, func(f File) bool { return f.Path == path })
	}
	bridge, stream := has("nginx/"+healthName), has("nginx/kubernetes.conf")
	s.line("From kthwd to separate programs\n===============================\n")
	s.line("Written by kthwd eject (kthwd %s). Nothing has been changed yet. Run the commands as root.\n", in.Kthwd)
	if in.Args != nil {
		in.controllerSteps(s, files)
	} else {
		s.step("Stop kthwd.")
		s.commands("systemctl disable --now kthwd-lb.socket kthwd-lb.service")
	}
	if bridge {
		in.bridgeSteps(s)
		lost = append(lost, bridgeLost...)
	}
	if stream {
		in.streamSteps(s)
	}
	s.line("What is lost\n------------\n")
	s.line("The programs have every flag that they have inside kthwd. These things kthwd does by itself:\n")
	for _, l := range lost {
		s.line("- %s: %s.", l.of, l.what)
	}
	s.line("\nThe way back\n------------\n")
	in.wayBack(s, bridge || stream)
	return []byte(s.String())
}

func (in Input) out(path ...string) string {
	return text.ShellWord(filepath.Join(append([]string{in.Out}, path...)...))
}

// controllerSteps replace kthwd by the four programs.
func (in Input) controllerSteps(s *steps, files []File) {
	c := in.Config.Controller
	l := c.Layout()
	s.line("The data stay where they are, %s: keys, kubeconfigs and etcd's database. So every object keeps its UID,", l.Dir)
	s.line("and tokens, secrets and leases stay valid. %s is not copied, and no key is in this directory.\n", l.EncryptionConfig())
	if strings.Contains(c.EtcdInitialCluster(), ",") {
		s.line("This is one controller of several. Run kthwd eject on each machine, and do these steps on one after the other,")
		s.line("each when the one before is healthy: two of three keep the quorum, whether kthwd runs them or the programs. The kthwd")
		s.line("of another controller reports this one as one that does not answer.\n")
	}
	if in.Names != Kthwd {
		s.step("Put the binaries into " + in.BinDir + ": etcd " + in.Etcd + ", and Kubernetes " + in.Kubernetes + ". Older ones may not\n   be able to read the data; newer ones go at most one minor further. Their versions:")
		s.commands(text.ShellWord(filepath.Join(in.BinDir, "etcd"))+" --version", text.ShellWord(filepath.Join(in.BinDir, "kube-apiserver"))+" --version")
	} else {
		s.line("The programs are links to kthwd in %s; upstream's commands, in the versions etcd %s and Kubernetes %s. kthwd stays\ninstalled for that.\n", in.BinDir, in.Etcd, in.Kubernetes)
	}
	s.step("Install the files. kthwd goes on running.")
	var install []string
	for _, f := range files {
		switch dir, name := filepath.Split(f.Path); dir {
		case "config/":
			if len(install) == 0 {
				install = append(install, "install -d -m 0755 "+text.ShellWord(in.ConfigDir))
			}
			install = append(install, fmt.Sprintf("install -m %04o %s %s/", f.Mode, in.out("config", name), text.ShellWord(in.ConfigDir)))
		case "systemd/":
			install = append(install, fmt.Sprintf("install -m %04o %s /etc/systemd/system/", f.Mode, in.out("systemd", name)))
		}
	}
	s.commands(append(install, "systemctl daemon-reload")...)
	s.step("Stop kthwd, and start the programs. The API is away from the first command to the end of the second.")
	units := strings.Join(explain.Names(), " ")
	stop := "systemctl disable --now kthwd-controller"
	if in.Config.Is(config.RoleLB) {
		stop += "   # or the unit of your own that runs both roles"
	}
	start := "systemctl enable --now " + units
	if strings.Contains(c.EtcdInitialCluster(), ",") {
		start = "systemctl enable --now --no-block " + units
	}
	s.commands(stop, start)
	s.step("Look. A standby kube-controller-manager or kube-scheduler is healthy as well.")
	kubectl := "kubectl --kubeconfig=" + text.ShellWord(l.Kubeconfig(pki.NameAdmin))
	if in.Names == Kthwd {
		kubectl = text.ShellWord(filepath.Join(in.BinDir, "kubectl")) + strings.TrimPrefix(kubectl, "kubectl")
	}
	// kube-apiserver tells systemd that it serves a moment before it knows the roles of its users.
	s.commands("until "+kubectl+" get --raw=/readyz; do sleep 1; done", kubectl+" get componentstatuses")
}

// bridgeSteps are the guide's, and Debian's own page must leave the port.
func (in Input) bridgeSteps(s *steps) {
	s.step("Let nginx answer the health checks at " + in.Config.Controller.HealthAddress + ", as in the guide.")
	s.commands("apt-get install -y nginx",
		"install -m 0644 "+in.out("nginx", healthName)+" /etc/nginx/sites-available/",
		"ln -sf /etc/nginx/sites-available/"+healthName+" /etc/nginx/sites-enabled/",
		"rm -f /etc/nginx/sites-enabled/default",
		"nginx -t && systemctl enable nginx && systemctl restart nginx")
}

func (in Input) streamSteps(s *steps) {
	s.step("Let nginx forward connections to the API servers, as in the guide.")
	s.commands("apt-get install -y nginx libnginx-mod-stream",
		"install -d -m 0755 /etc/nginx/tcpconf.d",
		"install -m 0644 "+in.out("nginx", "kubernetes.conf")+" /etc/nginx/tcpconf.d/",
		"grep -qxF 'include /etc/nginx/tcpconf.d/*;' /etc/nginx/nginx.conf || echo 'include /etc/nginx/tcpconf.d/*;' >> /etc/nginx/nginx.conf",
		"nginx -t && systemctl enable nginx && systemctl restart nginx")
	if in.Config.LB.Freebind {
		s.line("   freebind: nginx needs sysctl net.ipv4.ip_nonlocal_bind=1 for addresses that this machine does not have yet.\n")
	}
}

func (in Input) wayBack(s *steps, nginx bool) {
	s.line("kthwd finds its directory as it left it. Its configuration file is unchanged.\n")
	var all []string
	if nginx {
		all = append(all, "systemctl disable --now nginx")
	}
	if in.Args != nil {
		// systemctl stops them one by one, and kube-apiserver cannot end in order without etcd.
		last := explain.Names()
		slices.Reverse(last)
		all = append(all, "systemctl disable --now "+strings.Join(last, " "), "systemctl enable --now kthwd-controller")
	} else {
		all = append(all, "systemctl enable --now kthwd-lb.socket kthwd-lb.service")
	}
	s.commands(all...)
}
