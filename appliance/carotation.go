package appliance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/appliance/advice"
	"kthwd/appliance/carotation"
	"kthwd/appliance/etcd"
	"kthwd/appliance/lease"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// newCARotation makes what replaces the cluster's CA.
func (p *prepared) newCARotation(member *etcd.Member, manager, scheduler *lease.Pause, client func() (*rest.Config, error)) *carotation.Rotation {
	return carotation.New(carotation.Config{
		Name: p.cfg.Name, Server: p.cfg.LocalServer(), Layout: p.layout, Etcd: member, Others: p.others, Watch: p.oldCA,
		Life: p.o.LeafLife, Log: p.o.Logs.Logger("kthwd"), Cannot: p.caElsewhere(),
		Changed: func(paths []string) {
			for _, path := range paths {
				p.machine.Accept(path)
			}
			if len(paths) > 0 {
				for _, l := range p.live {
					l.Refresh()
				}
			}
		},
		NewTerm: func(ctx context.Context) error {
			const why = "until the next term, which reads the CAs anew"
			return errors.Join(newTerm(ctx, program.ControllerManager, manager, why), newTerm(ctx, program.Scheduler, scheduler, why))
		},
		Share: func(ctx context.Context, client *clientv3.Client, path string, alone bool) error {
			shared := p.shared()
			return shared.Record(ctx, client, path, alone)
		},
		Kubelets: func(ctx context.Context) ([]carotation.Kubelet, error) {
			config, err := client()
			if err != nil {
				return nil, err
			}
			return kubelets(ctx, config)
		},
	})
}

// newTerm makes a program end its term, if it has one, and begin another.
func newTerm(ctx context.Context, name string, pause *lease.Pause, why string) error {
	ctx, cancel := context.WithTimeout(ctx, givingUp)
	defer cancel()
	defer pause.End()
	if err := pause.Begin(ctx, why); err != nil {
		return fmt.Errorf("%s does not end its term: %w", name, err)
	}
	return nil
}

// termArgs is the command line of kube-controller-manager's next term: it signs with one
// certificate, and ca.pem may have become one with several.
func (p *prepared) termArgs(args []program.Arg) []program.Arg {
	const flag = "cluster-signing-cert-file"
	if p.caElsewhere() != nil || program.Value(args, flag) == "" {
		return args
	}
	signer, data, err := pki.Signer(p.layout)
	if err == nil && data != nil {
		signer, err = p.writeRun(pki.SignerFile, data)
		p.machine.Accept(signer)
	}
	if err != nil || signer == "" {
		p.log.Warn("kube-controller-manager signs with the certificate of its last term", "err", err)
		return args
	}
	return program.WithSigner(slices.Clone(args), signer)
}

// caElsewhere says which flag of the user's keeps kthwd from rotating the cluster's CA; nil for none.
func (p *prepared) caElsewhere() error {
	ca := p.layout.CA()
	for _, f := range []struct {
		program, key string
		want         []string
	}{
		{program.APIServer, "client-ca-file", []string{ca}},
		{program.APIServer, "kubelet-certificate-authority", []string{ca}},
		{program.APIServer, "tls-cert-file", []string{p.layout.Cert(pki.NameKubernetes)}},
		{program.ControllerManager, "root-ca-file", []string{ca}},
		{program.ControllerManager, "client-ca-file", []string{ca}},
		{program.ControllerManager, "cluster-signing-cert-file", []string{"", ca, p.layout.Run() + "/" + pki.SignerFile}},
		{program.Scheduler, "client-ca-file", []string{ca}},
	} {
		if is := program.Value(p.args[f.program], f.key); !slices.Contains(f.want, is) {
			return advice.With(fmt.Errorf("its %s has --%s=%s", f.program, f.key, is), "leave that flag to kthwd, or replace the CA by hand")
		}
	}
	for _, a := range p.args[program.ControllerManager] {
		if strings.HasPrefix(a.Key, "cluster-signing-") && strings.HasSuffix(a.Key, "-cert-file") && a.Key != "cluster-signing-cert-file" {
			return advice.With(fmt.Errorf("its %s has --%s", program.ControllerManager, a.Key), "leave that flag to kthwd, or replace the CA by hand")
		}
	}
	return nil
}

// kubelets lists the nodes and where their kubelets answer, as the API server finds them.
func kubelets(ctx context.Context, config *rest.Config) (all []carotation.Kubelet, err error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, n := range nodes.Items {
		k := carotation.Kubelet{Node: n.Name}
		for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeInternalDNS, corev1.NodeHostName, corev1.NodeExternalIP, corev1.NodeExternalDNS} {
			for _, a := range n.Status.Addresses {
				if port := n.Status.DaemonEndpoints.KubeletEndpoint.Port; a.Type == kind && k.Address == "" && port > 0 {
					k.Address = net.JoinHostPort(a.Address, strconv.Itoa(int(port)))
				}
			}
		}
		all = append(all, k)
	}
	return all, nil
}
