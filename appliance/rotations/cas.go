package rotations

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kthwd/appliance/advice"
	"kthwd/appliance/carotation"
	"kthwd/appliance/carotation/handshake"
	"kthwd/appliance/carotation/watch"
	"kthwd/appliance/etcd"
	"kthwd/appliance/lease"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/verifiers"
)

// Used tells of a request with a certificate, and of its user.
func (r *Rotations) Used(cert *x509.Certificate, user, address string) {
	for _, w := range r.watches {
		w.Used(cert, user, address)
	}
}

// newCAs makes the rotation of each CA, and the watch of each for the time in which it is replaced.
func (r *Rotations) newCAs() (all []*carotation.Rotation) {
	for _, ca := range carotation.CAs() {
		watch := &watch.Watch{}
		r.watches = append(r.watches, watch)
		c := carotation.Config{
			CA: ca, Name: r.cfg.Controller.Name, Server: r.cfg.Controller.LocalServer(), Layout: r.layout, Etcd: r.cfg.Etcd, Others: r.cfg.Others, Watch: watch,
			Life: r.cfg.Life, Log: r.cfg.Logs.Logger("kthwd"), Changed: r.filesChanged,
			Share: r.cfg.Shared.Record,
		}
		published, list := "client-ca-file", verifiers.Kubelets
		switch ca {
		case carotation.Etcd:
			c.Cannot = r.etcdCAElsewhere()
			c.Ports = func() []string { return etcdPorts(r.cfg.Etcd) }
			c.Verifiers = func(context.Context) ([]handshake.Verifier, error) { return etcdMembers(r.cfg.Etcd) }
			all = append(all, carotation.New(c))
			continue
		case carotation.FrontProxy:
			published, list = "requestheader-client-ca-file", verifiers.ExtensionServers
			c.Cannot, c.Settle = r.frontProxyElsewhere(), r.cfg.Within
		default:
			c.Cannot = r.caElsewhere()
			c.NewTerm = func(ctx context.Context) error {
				const why = "until the next term, which reads the CAs anew"
				return errors.Join(newTerm(ctx, program.ControllerManager, r.cfg.Manager, why), newTerm(ctx, program.Scheduler, r.cfg.Scheduler, why))
			}
		}
		c.Verifiers = func(ctx context.Context) ([]handshake.Verifier, error) {
			api, err := clientOf(r.cfg.Client)
			if err != nil {
				return nil, err
			}
			return list(ctx, api)
		}
		c.Unpublish = func(ctx context.Context, ca *x509.Certificate) error {
			api, err := clientOf(r.cfg.Client)
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
func (r *Rotations) filesChanged(paths []string) {
	for _, path := range paths {
		r.cfg.Machine.Accept(path)
	}
	if len(paths) > 0 {
		r.cfg.Refresh()
	}
}

// newTerm makes a program end its term, if it has one, and begin another.
func newTerm(ctx context.Context, name string, pause *lease.Pause, why string) error {
	ctx, cancel := context.WithTimeout(ctx, lease.GivingUp)
	defer cancel()
	defer pause.End()
	if err := pause.Begin(ctx, why); err != nil {
		return fmt.Errorf("%s does not end its term: %w", name, err)
	}
	return nil
}

// TermArgs is the command line of kube-controller-manager's next term: it signs with one
// certificate, and ca.pem may have become one with several.
func (r *Rotations) TermArgs(args []program.Arg) []program.Arg {
	const flag = "cluster-signing-cert-file"
	if r.caElsewhere() != nil || program.Value(args, flag) == "" {
		return args
	}
	signer, data, err := pki.Signer(r.layout)
	if err == nil && data != nil {
		signer, err = r.cfg.WriteRun(pki.SignerFile, data)
		r.cfg.Machine.Accept(signer)
	}
	if err != nil || signer == "" {
		r.log.Warn("kube-controller-manager signs with the certificate of its last term", "err", err)
		return args
	}
	return program.WithSigner(slices.Clone(args), signer)
}

// caElsewhere says which flag of the user's keeps kthwd from rotating the cluster's CA; nil for none.
func (r *Rotations) caElsewhere() error {
	ca := r.layout.CA()
	err := r.otherFlag([]wantedFlag{
		{program.APIServer, "client-ca-file", []string{ca}},
		{program.APIServer, "kubelet-certificate-authority", []string{ca}},
		{program.APIServer, "tls-cert-file", []string{r.layout.Cert(pki.NameKubernetes)}},
		{program.ControllerManager, "root-ca-file", []string{ca}},
		{program.ControllerManager, "client-ca-file", []string{ca}},
		{program.ControllerManager, "cluster-signing-cert-file", []string{"", ca, r.layout.Run() + "/" + pki.SignerFile}},
		{program.Scheduler, "client-ca-file", []string{ca}},
	})
	if err != nil {
		return err
	}
	for _, a := range r.cfg.Args[program.ControllerManager] {
		if strings.HasPrefix(a.Key, "cluster-signing-") && strings.HasSuffix(a.Key, "-cert-file") && a.Key != "cluster-signing-cert-file" {
			return advice.With(fmt.Errorf("its %s has --%s", program.ControllerManager, a.Key), "leave that flag to kthwd, or replace the CA by hand")
		}
	}
	return nil
}

// frontProxyElsewhere says which flag of the user's keeps kthwd from rotating the front proxy's CA; nil
// for none.
func (r *Rotations) frontProxyElsewhere() error {
	ca := r.layout.Cert(pki.NameFrontProxyCA)
	return r.otherFlag([]wantedFlag{
		{program.APIServer, "requestheader-client-ca-file", []string{ca}},
		{program.APIServer, "proxy-client-cert-file", []string{r.layout.Cert(pki.NameFrontProxyClient)}},
		{program.APIServer, "proxy-client-key-file", []string{r.layout.Key(pki.NameFrontProxyClient)}},
		{program.ControllerManager, "requestheader-client-ca-file", []string{"", ca}},
		{program.Scheduler, "requestheader-client-ca-file", []string{"", ca}},
	})
}

// etcdCAElsewhere says why kthwd cannot rotate etcd's CA: etcd has none of its own alone, or a flag of the user's
// names another; nil if it can.
func (r *Rotations) etcdCAElsewhere() error {
	if stage := pki.StageOf(r.layout); stage != pki.StageOwn {
		return advice.With(errors.New("its etcd "+stage.String()), "give etcd a CA of its own alone first, which is a new one: kthwd pki split-etcd-ca")
	}
	ca, cert, key := r.layout.EtcdCA(), r.layout.Cert(pki.NameEtcd), r.layout.Key(pki.NameEtcd)
	return r.otherFlag([]wantedFlag{
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
func etcdMembers(member *etcd.Member) (all []handshake.Verifier, err error) {
	server := member.Running()
	if server == nil {
		return nil, errors.New("etcd has not started")
	}
	for _, m := range server.Server.Cluster().Members() {
		v := handshake.Verifier{Name: m.Name, Path: "/version"}
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
func (r *Rotations) otherFlag(all []wantedFlag) error {
	for _, f := range all {
		if is := program.Value(r.cfg.Args[f.program], f.key); !slices.Contains(f.want, is) {
			return advice.With(fmt.Errorf("its %s has --%s=%s", f.program, f.key, is), "leave that flag to kthwd, or replace the CA by hand")
		}
	}
	return nil
}
