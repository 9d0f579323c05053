package carotation

import (
	"errors"
	"fmt"

	"kthwd/appliance/advice"
	"kthwd/appliance/carotation/castate"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
)

// CA is a CA that a rotation replaces.
type CA string

// The CAs. Each passes through the same stages, by itself.
const (
	Cluster    CA = "cluster"     // signs the certificates of API servers, programs, nodes and users
	FrontProxy CA = "front-proxy" // signs the one with which the API server speaks to extension API servers in the name of a user
	Etcd       CA = "etcd"        // signs those of etcd's members, for their clients and each other
)

// CAs lists them.
func CAs() []CA { return []CA{Cluster, FrontProxy, Etcd} }

// Path is the path of the verbs on the control socket.
func (c CA) Path() string {
	if c == Etcd {
		return "/etcd-ca-rotation" // the other one is the move to that CA, see etcdca.Path
	}
	return "/" + c.authority().file
}

// PeerPath is where a controller answers the one that carries a rotation on.
func (c CA) PeerPath() string { return "/kthwd/" + c.authority().file }

// Verb is the command of a verb.
func (c CA) Verb(name string) string { return c.authority().kind.Verb(name) }

// Stages is the number of the stages.
func (c CA) Stages() int {
	if c == Etcd {
		return castate.StageForget.Number()
	}
	return castate.StageDrop.Number()
}

// Bring names the machines and users that need the new CA before it signs.
func (c CA) Bring() string {
	switch c {
	case FrontProxy:
		return "front-proxy-ca.pem has both CAs: copy it to extension API servers that have it as a file"
	case Etcd:
		return "etcd-ca.pem has both CAs: restart kthwd on every controller, one after the other"
	}
	return "ca.pem has both CAs: copy it to every worker, balancer and user"
}

// server is the program whose handshake shows the CAs in use.
func (c CA) server() string {
	if c == Etcd {
		return "etcd"
	}
	return "API server"
}

// awaited is the stage in which a person does what the new CA needs before it signs.
func (c CA) awaited() castate.Stage {
	if c == Etcd {
		return castate.StageRestart
	}
	return castate.StageDistribute
}

// authority holds the differences between the CAs.
type authority struct {
	CA
	file    string      // name of its files, see pki.ReadCA
	kind    stages.Kind // kube-apiserver's keys in etcd are below /registry
	purpose string      // of the seals of its states
	finding string
	noSeal  error // something else than a controller has written the state
}

var authorities = map[CA]*authority{
	Cluster:    newAuthority(Cluster, pki.NameCA, "the cluster's CA", "", "CA rotation", "ca_rotation"),
	FrontProxy: newAuthority(FrontProxy, pki.NameFrontProxyCA, "the front proxy's CA", "--ca="+string(FrontProxy), "front proxy CA rotation", "front_proxy_ca_rotation"),
	Etcd:       newAuthority(Etcd, pki.NameEtcdCA, "etcd's CA", "--ca="+string(Etcd), "etcd CA rotation", "etcd_ca_rotation"),
}

func (c CA) authority() *authority { return authorities[c] }

func newAuthority(ca CA, file, what, flags, purpose, finding string) *authority {
	kind := stages.Kind{What: what, Command: "kthwd pki ca", Flags: flags, Prefix: "/kthwd/" + file + "/"}
	return &authority{
		CA: ca, file: file, kind: kind, purpose: purpose, finding: finding,
		noSeal: advice.With(errors.New("has no controller's seal: something else than kthwd can write to etcd, or this controller lacks the service account key"),
			"see what it says: etcdctl get "+kind.StateKey()+"; if no rotation is under way, remove it: etcdctl del "+kind.StateKey()),
	}
}

// certFile, keyFile and ownFile are the names of the files of the CA, and of the certificate by which a
// controller shows which CA signs.
func (a *authority) certFile() string { return a.file + ".pem" }
func (a *authority) keyFile() string  { return a.file + "-key.pem" }
func (a *authority) ownFile() string  { return pki.OwnCertificate(a.file) + ".pem" }

// lacks is the error of a controller that has not the files of the rotation.
func (a *authority) lacks(id string) error {
	return advice.With(fmt.Errorf("its %s or %s lacks the CA %s", a.certFile(), a.keyFile(), castate.Short(id)),
		"copy both files from another controller, and restart kthwd there; then "+a.Verb("resume"))
}
