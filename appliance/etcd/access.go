package etcd

import (
	"net/http"

	"go.etcd.io/etcd/client/pkg/v3/transport"

	"kthwd/appliance/etcd/peers"
	"kthwd/appliance/etcdgateway"
	"kthwd/appliance/etcdline"
	"kthwd/appliance/pki"
)

// AdmitControllers makes etcd's two ports refuse all certificates except a controller's.
// The cluster's CA also signs workers' certificates and, through the API, any user's,
// and access to etcd means root on the whole cluster. With a CA of etcd's own the names
// are the second line of defence. So are they with a CA of the user's: nothing here tells what
// else that has signed, or whether it is a cluster's CA under another certificate. A port stays
// unchanged if the user has set its names. Call it before Run.
func (e *Member) AdmitControllers() error {
	ports := []*transport.TLSInfo{&e.cfg.ClientTLSInfo, &e.cfg.PeerTLSInfo}
	for _, port := range ports {
		if port.Empty() || !peers.AllowedNames(port).Empty() {
			continue
		}
		names, err := pki.Controllers(port.CertFile)
		if err != nil {
			return err
		}
		port.AllowedCNs, port.AllowedHostnames = names.CommonNames, names.Hosts
		e.log.Debug("etcd accepts controllers only", "names", names, "certificate", port.CertFile)
	}
	e.replaceGateway()
	return nil
}

// PeerNames returns the names that the peer port accepts; none means all.
func (e *Member) PeerNames() pki.ControllerNames { return peers.AllowedNames(&e.cfg.PeerTLSInfo) }

// ControllerNames returns the names that the client port or the peer port accepts.
func (e *Member) ControllerNames() pki.ControllerNames {
	return peers.AllowedNames(&e.cfg.ClientTLSInfo).Join(peers.AllowedNames(&e.cfg.PeerTLSInfo))
}

// replaceGateway serves etcd's HTTP API (/v3/) through the unix socket. etcd's own
// gateway fails once only certain names are allowed, see etcdgateway.
func (e *Member) replaceGateway() {
	socket := etcdline.Socket(e.cfg)
	if !e.cfg.EnableGRPCGateway || socket == "" {
		return
	}
	e.cfg.EnableGRPCGateway = false
	e.gateway = etcdgateway.New(socket)
	e.Handle("/v3/", e.gateway)
}

// Handle adds a handler to the client port and the unix socket. Call it before Run.
func (e *Member) Handle(path string, h http.Handler) {
	if e.cfg.UserHandlers == nil {
		e.cfg.UserHandlers = map[string]http.Handler{}
	}
	e.cfg.UserHandlers[path] = h
}
