package bench

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"

	"kthwd/appliance/pki"
)

// separateUnits are the tutorial's four unit files, with their certificates
// made beforehand. Flags are the guide's in their modern form; what has no
// comment is word for word, and what is missing is upstream's default.
func separateUnits(t *testing.T, bin programs, p *plane, dir string) []*unit {
	t.Helper()
	server := "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(p.ports.Secure))
	_, err := pki.Ensure(p.layout, pki.Spec{
		Addresses: []string{p.address, "127.0.0.1"}, Local: []string{p.address, "127.0.0.1"},
		ServiceIP: net.ParseIP("10.32.0.1"), Server: server,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.layout.SchedulerConfig(), schedulerConfig(p.layout), 0o600); err != nil {
		t.Fatal(err)
	}
	unitOf := func(name, path string, args []string) *unit {
		return &unit{name: name, argv: append([]string{path}, args...), log: dir + "/" + name + ".log", restart: true}
	}
	return []*unit{
		unitOf("etcd", bin.etcd, etcdFlags(p)),
		unitOf("kube-apiserver", bin.apiserver, apiserverFlags(p)),
		unitOf("kube-controller-manager", bin.controllerManager, controllerManagerFlags(p)),
		unitOf("kube-scheduler", bin.scheduler, schedulerFlags(p)),
	}
}

func etcdFlags(p *plane) []string {
	l := p.layout
	url := func(address string, port int) string {
		return "https://" + net.JoinHostPort(address, strconv.Itoa(port))
	}
	client, peer := url(p.address, p.ports.EtcdClient), url(p.address, p.ports.EtcdPeer)
	listen := client
	if p.address != "127.0.0.1" {
		listen += "," + url("127.0.0.1", p.ports.EtcdClient)
	}
	return []string{
		"--name=controller-0",
		"--cert-file=" + l.Cert(pki.NameKubernetes),
		"--key-file=" + l.Key(pki.NameKubernetes),
		"--peer-cert-file=" + l.Cert(pki.NameKubernetes),
		"--peer-key-file=" + l.Key(pki.NameKubernetes),
		"--trusted-ca-file=" + l.CA(),
		"--peer-trusted-ca-file=" + l.CA(),
		"--peer-client-cert-auth",
		"--client-cert-auth",
		"--initial-advertise-peer-urls=" + peer,
		"--listen-peer-urls=" + peer,
		"--listen-client-urls=" + listen,
		"--advertise-client-urls=" + client,
		"--initial-cluster-token=etcd-cluster-0",
		"--initial-cluster=controller-0=" + peer,
		"--initial-cluster-state=new",
		"--data-dir=" + l.Etcd(),
	}
}

func apiserverFlags(p *plane) []string {
	l := p.layout
	flags := []string{
		"--advertise-address=" + p.address,
		"--allow-privileged=true", // --apiserver-count=3 means nothing any more
		"--audit-log-maxage=30",
		"--audit-log-maxbackup=3",
		"--audit-log-maxsize=100",
		"--audit-log-path=" + l.AuditLog(),
		"--audit-policy-file=" + l.AuditPolicy(), // without one nothing is recorded today
		"--authorization-mode=Node,RBAC",
		"--bind-address=0.0.0.0",
		"--secure-port=" + strconv.Itoa(p.ports.Secure), // 6443 in the guide
		"--client-ca-file=" + l.CA(),
		"--enable-admission-plugins=NamespaceLifecycle,NodeRestriction,LimitRanger,ServiceAccount,DefaultStorageClass,ResourceQuota", // Initializers is gone
		"--etcd-cafile=" + l.CA(),
		"--etcd-certfile=" + l.Cert(pki.NameKubernetes),
		"--etcd-keyfile=" + l.Key(pki.NameKubernetes),
		"--etcd-servers=https://" + net.JoinHostPort(p.address, strconv.Itoa(p.ports.EtcdClient)),
		"--event-ttl=1h",
		"--encryption-provider-config=" + l.EncryptionConfig(), // was --experimental-…
		"--kubelet-certificate-authority=" + l.CA(),
		"--kubelet-client-certificate=" + l.Cert(pki.NameKubernetes),
		"--kubelet-client-key=" + l.Key(pki.NameKubernetes),
		"--runtime-config=api/all=true", // was api/all
		"--service-account-key-file=" + l.Cert(pki.NameServiceAccount),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local", // required today
		"--service-account-signing-key-file=" + l.Key(pki.NameServiceAccount),   // required today
		"--service-cluster-ip-range=10.32.0.0/24",
		"--service-node-port-range=30000-32767",
		"--tls-cert-file=" + l.Cert(pki.NameKubernetes),
		"--tls-private-key-file=" + l.Key(pki.NameKubernetes),
		"--v=2",
		"--kubelet-preferred-address-types=InternalIP,InternalDNS,Hostname,ExternalIP,ExternalDNS",
		// Aggregation, which the guide forgot and kthwd has.
		"--requestheader-client-ca-file=" + l.Cert(pki.NameFrontProxyCA),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + l.Cert(pki.NameFrontProxyClient),
		"--proxy-client-key-file=" + l.Key(pki.NameFrontProxyClient),
		"--enable-aggregator-routing=true",
	}
	if net.ParseIP(p.address).IsLoopback() {
		flags = append(flags, "--endpoint-reconciler-type=none") // the API refuses loopback in Endpoints
	}
	return flags
}

func controllerManagerFlags(p *plane) []string {
	l := p.layout
	return []string{
		"--bind-address=0.0.0.0",                                   // was --address
		"--secure-port=" + strconv.Itoa(p.ports.ControllerManager), // 10257 by default
		"--cluster-cidr=10.200.0.0/16",
		"--cluster-name=kubernetes",
		"--cluster-signing-cert-file=" + l.CA(),
		"--cluster-signing-key-file=" + l.CAKey(),
		"--kubeconfig=" + l.Kubeconfig(pki.NameControllerManager),
		"--leader-elect=true",
		"--root-ca-file=" + l.CA(),
		"--service-account-private-key-file=" + l.Key(pki.NameServiceAccount),
		"--service-cluster-ip-range=10.32.0.0/24",
		"--use-service-account-credentials=true",
		"--v=2",
	}
}

func schedulerFlags(p *plane) []string {
	return []string{
		"--config=" + p.layout.SchedulerConfig(),
		"--secure-port=" + strconv.Itoa(p.ports.Scheduler), // 10259 by default
		"--v=2",
	}
}

func schedulerConfig(l pki.Layout) []byte {
	return fmt.Appendf(nil, `apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
clientConnection:
  kubeconfig: %q
leaderElection:
  leaderElect: true
`, l.Kubeconfig(pki.NameScheduler))
}
