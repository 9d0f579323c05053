package appliance

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/appliance/advice"
	"kthwd/appliance/carotation"
	"kthwd/appliance/controllers"
	"kthwd/appliance/etcd"
	"kthwd/appliance/lease"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/verifiers"
)

// newOldCAs makes a watch of each CA, for the time in which it is replaced.
func newOldCAs() (all []*carotation.Watch) {
	for range carotation.CAs() {
		all = append(all, &carotation.Watch{})
	}
	return all
}

// usesCA tells of a request with a certificate.
func (p *prepared) usesCA(cert *x509.Certificate, user, address string) {
	for _, w := range p.oldCAs {
		w.Used(cert, user, address)
	}
}

// newCARotations makes the rotation of each CA.
func (p *prepared) newCARotations(member *etcd.Member, manager, scheduler *lease.Pause, client func() (*rest.Config, error)) (all []*carotation.Rotation) {
	for i, ca := range carotation.CAs() {
		c := carotation.Config{
			CA: ca, Name: p.cfg.Name, Server: p.cfg.LocalServer(), Layout: p.layout, Etcd: member, Others: p.others, Watch: p.oldCAs[i],
			Life: p.o.LeafLife, Log: p.o.Logs.Logger("kthwd"), Changed: p.filesChanged,
			Share: func(ctx context.Context, client *clientv3.Client, path string, alone bool) error {
				shared := p.shared()
				return shared.Record(ctx, client, path, alone)
			},
		}
		published, list := "client-ca-file", verifiers.Kubelets
		switch ca {
		case carotation.Etcd:
			c.Cannot = p.etcdCAElsewhere()
			c.Ports = func() []string { return etcdPorts(member) }
			c.Verifiers = func(context.Context) ([]carotation.Verifier, error) { return etcdMembers(member) }
			all = append(all, carotation.New(c))
			continue
		case carotation.FrontProxy:
			published, list = "requestheader-client-ca-file", verifiers.ExtensionServers
			c.Cannot, c.Settle = p.frontProxyElsewhere(), controllers.CertificatesWithin()
		default:
			c.Cannot = p.caElsewhere()
			c.NewTerm = func(ctx context.Context) error {
				const why = "until the next term, which reads the CAs anew"
				return errors.Join(newTerm(ctx, program.ControllerManager, manager, why), newTerm(ctx, program.Scheduler, scheduler, why))
			}
		}
		c.Verifiers = func(ctx context.Context) ([]carotation.Verifier, error) {
			api, err := clientOf(client)
			if err != nil {
				return nil, err
			}
			return list(ctx, api)
		}
		c.Unpublish = func(ctx context.Context, ca *x509.Certificate) error {
			api, err := clientOf(client)
			if err != nil {
				return err
			}
			return verifiers.Unpublish(ctx, api, published, ca)
		}
		all = append(all, carotation.New(c))
	}
	return all
}

func clientOf(config func() (*rest.Config, error)) (kubernetes.Interface, error) {
	c, err := config()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(c)
}

// filesChanged makes known that files of the data directory were replaced for a reason.
func (p *prepared) filesChanged(paths []string) {
	for _, path := range paths {
		p.machine.Accept(path)
	}
	if len(paths) > 0 {
		for _, l := range p.live {
			l.Refresh()
		}
	}
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
	err := p.otherFlag([]wantedFlag{
		{program.APIServer, "client-ca-file", []string{ca}},
		{program.APIServer, "kubelet-certificate-authority", []string{ca}},
		{program.APIServer, "tls-cert-file", []string{p.layout.Cert(pki.NameKubernetes)}},
		{program.ControllerManager, "root-ca-file", []string{ca}},
		{program.ControllerManager, "client-ca-file", []string{ca}},
		{program.ControllerManager, "cluster-signing-cert-file", []string{"", ca, p.layout.Run() + "/" + pki.SignerFile}},
		{program.Scheduler, "client-ca-file", []string{ca}},
	})
	if err != nil {
		return err
	}
	for _, a := range p.args[program.ControllerManager] {
		if strings.HasPrefix(a.Key, "cluster-signing-") && strings.HasSuffix(a.Key, "-cert-file") && a.Key != "cluster-signing-cert-file" {
			return advice.With(fmt.Errorf("its %s has --%s", program.ControllerManager, a.Key), "leave that flag to kthwd, or replace the CA by hand")
		}
	}
	return nil
}

// frontProxyElsewhere says which flag of the user's keeps kthwd from rotating the front proxy's CA; nil
// for none.
func (p *prepared) frontProxyElsewhere() error {
	ca := p.layout.Cert(pki.NameFrontProxyCA)
	return p.otherFlag([]wantedFlag{
		{program.APIServer, "requestheader-client-ca-file", []string{ca}},
		{program.APIServer, "proxy-client-cert-file", []string{p.layout.Cert(pki.NameFrontProxyClient)}},
		{program.APIServer, "proxy-client-key-file", []string{p.layout.Key(pki.NameFrontProxyClient)}},
		{program.ControllerManager, "requestheader-client-ca-file", []string{"", ca}},
		{program.Scheduler, "requestheader-client-ca-file", []string{"", ca}},
	})
}

// etcdCAElsewhere says why kthwd cannot rotate etcd's CA: etcd has none of its own alone, or a flag of the user's
// names another; nil if it can.
func (p *prepared) etcdCAElsewhere() error {
	if stage := pki.StageOf(p.layout); stage != pki.StageOwn {
		return advice.With(errors.New("its etcd "+stage.String()), "give etcd a CA of its own alone first, which is a new one: kthwd pki split-etcd-ca")
	}
	ca, cert, key := p.layout.EtcdCA(), p.layout.Cert(pki.NameEtcd), p.layout.Key(pki.NameEtcd)
	return p.otherFlag([]wantedFlag{
		{program.Etcd, "trusted-ca-file", []string{ca}},
		{program.Etcd, "peer-trusted-ca-file", []string{ca}},
		{program.Etcd, "client-cert-auth", []string{"true"}},
		{program.Etcd, "peer-client-cert-auth", []string{"true"}},
		{program.Etcd, "cert-file", []string{cert}},
		{program.Etcd, "key-file", []string{key}},
		{program.Etcd, "peer-cert-file", []string{cert}},
		{program.Etcd, "peer-key-file", []string{key}},
		{program.Etcd, "client-cert-file", []string{""}},
		{program.Etcd, "peer-client-cert-file", []string{""}},
		{program.APIServer, "etcd-cafile", []string{"", ca}},
		{program.APIServer, "etcd-certfile", []string{"", cert}},
	})
}

// etcdPorts lists the ports of a member that verify certificates, as HOST:PORT.
func etcdPorts(member *etcd.Member) (all []string) {
	server := member.Running()
	if server == nil {
		return nil
	}
	is := server.Config()
	for _, u := range slices.Concat(is.ListenPeerUrls, is.ListenClientUrls) {
		if u.Scheme == "https" {
			all = append(all, u.Host)
		}
	}
	return all
}

// etcdMembers lists the members, each at its peer port: that is where they would lose each other.
func etcdMembers(member *etcd.Member) (all []carotation.Verifier, err error) {
	server := member.Running()
	if server == nil {
		return nil, errors.New("etcd has not started")
	}
	for _, m := range server.Server.Cluster().Members() {
		v := carotation.Verifier{Name: m.Name, Path: "/version"}
		if v.Name == "" {
			v.Name = m.ID.String()
		}
		for _, text := range m.PeerURLs {
			if u, err := url.Parse(text); err == nil && u.Scheme == "https" && v.Address == "" {
				v.Address = u.Host
			}
		}
		all = append(all, v)
	}
	return all, nil
}

// wantedFlag is a flag of a program, with the values that kthwd gives it.
type wantedFlag struct {
	program, key string
	want         []string
}

// otherFlag is an error that names the first flag with another value.
func (p *prepared) otherFlag(all []wantedFlag) error {
	for _, f := range all {
		if is := program.Value(p.args[f.program], f.key); !slices.Contains(f.want, is) {
			return advice.With(fmt.Errorf("its %s has --%s=%s", f.program, f.key, is), "leave that flag to kthwd, or replace the CA by hand")
		}
	}
	return nil
}
