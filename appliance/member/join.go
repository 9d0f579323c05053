package member

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"kthwd/appliance/config"
)

// The steps of a join, after kthwd member add has made a token:
//
//	joiner                              any controller, port 10301
//	  POST /v1/files  ─────────────────►  token, releases
//	                  ◄─────────────────  settings, shared files, its certificates
//	  connects to each member's peer port, and opens its own
//	  POST /v1/admit  ─────────────────►  token
//	                  ◄── GET DialPath ─  does it answer, with a certificate of the CA?
//	                                      each other controller asks the same
//	                                      learner added; the secret is spent
//	                  ◄─────────────────  the members
//	  writes kthwd.yaml
//
// The first request binds the token to its joiner. Until the learner is added,
// nothing else in the cluster has changed, and that joiner may ask again.
const (
	FilesPath = "/v1/files"
	AdmitPath = "/v1/admit"
	DialPath  = "/kthwd/join/" // on the joiner's peer port; followed by the ID
)

// AddRequest is the request of kthwd member add to the running kthwd.
type AddRequest struct {
	Name    string        `json:"name"`
	Address string        `json:"address"`
	TTL     time.Duration `json:"ttlNanoseconds"`
	CAKey   bool          `json:"caKey"`          // the new controller receives the CA's key
	From    string        `json:"from,omitempty"` // the address that it speaks from; empty means Address
}

// Added is the answer to AddRequest.
type Added struct {
	Token    string   `json:"token"`
	Warnings []string `json:"warnings,omitempty"`
}

// Versions are the versions of a controller that must fit those of its cluster.
type Versions struct {
	Kthwd      string `json:"kthwd"`
	Kubernetes string `json:"kubernetes"` // v1.36.3
	Etcd       string `json:"etcd"`       // 3.6.16
}

// Fits refuses a joiner whose minor versions differ.
func (v Versions) Fits(joiner Versions) error {
	for _, c := range []struct{ what, here, there string }{
		{"Kubernetes", v.Kubernetes, joiner.Kubernetes}, {"etcd", v.Etcd, joiner.Etcd},
	} {
		if minor(c.here) != minor(c.there) {
			return &Refusal{Text: fmt.Sprintf("the kthwd that wants to join has %s %s, the cluster has %s: the minor versions must be the same", c.what, c.there, c.here),
				Advice: "install the kthwd of the other controllers: " + v.Kthwd}
		}
	}
	return nil
}

// minor returns 1.36 for v1.36.3.
func minor(version string) string {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// Request is the joiner's request in both steps.
type Request struct {
	ID       string   `json:"id"`
	Secret   []byte   `json:"secret"`
	Joiner   string   `json:"joiner"` // random, one per run; identifies a repeated request
	Versions Versions `json:"versions"`

	// KnowsEtcdCA tells that the joiner's kthwd can use a CA of etcd's own. It is false for
	// an older one, which would start with a certificate that no member accepts.
	KnowsEtcdCA bool `json:"knowsEtcdCA,omitempty"`

	NeedsCertificate     bool `json:"needsCertificate,omitempty"`     // for FilesPath: the joiner has no kubernetes.pem
	NeedsEtcdCertificate bool `json:"needsEtcdCertificate,omitempty"` // for FilesPath: the joiner has no etcd.pem
	PeerPort             int  `json:"peerPort,omitempty"`             // for AdmitPath: where the joiner listens

	From string `json:"-"` // HOST:PORT that the request came from, as the server saw it
}

// joinerSize is the number of random bytes in the name of a joiner.
const joinerSize = 16

// NewJoiner returns a name for Request.Joiner.
func NewJoiner() string {
	name := make([]byte, joinerSize)
	_, _ = rand.Read(name) // it never fails
	return hex.EncodeToString(name)
}

// IsJoiner reports whether a name is one of NewJoiner's. A token is bound to its first joiner by
// that name, so an empty or a guessable one must bind no token.
func IsJoiner(name string) bool {
	data, err := hex.DecodeString(name)
	return err == nil && len(data) == joinerSize
}

// Files is the answer to FilesPath.
type Files struct {
	Name     string            `json:"name"`
	Address  string            `json:"address"`
	Settings Settings          `json:"settings"`
	Admin    string            `json:"admin,omitempty"` // server of admin.kubeconfig; empty means the joiner's own
	Files    map[string][]byte `json:"files"`           // by name; secret
	Peers    []Peer            `json:"peers,omitempty"` // the members that take part; an older controller names none
	Now      time.Time         `json:"now,omitzero"`    // by the clock of the controller that answers
}

// Peer is a member that the joiner has to reach.
type Peer struct {
	Name string `json:"name"`
	URL  string `json:"url"` // of its peer port
}

// Settings are the settings that all controllers of a cluster share.
type Settings struct {
	ServiceClusterIPRange string   `json:"serviceClusterIPRange"`
	ClusterCIDR           string   `json:"clusterCIDR"`
	SecurePort            int      `json:"securePort"`
	EtcdClientPort        int      `json:"etcdClientPort"`
	EtcdPeerPort          int      `json:"etcdPeerPort"`
	JoinPort              int      `json:"joinPort"`
	Profile               string   `json:"profile,omitempty"`   // empty of an older kthwd: the guide's
	Arguments             []string `json:"arguments,omitempty"` // names of the pass-through settings in use on the controller that answers
}

// Admitted is the answer to AdmitPath.
type Admitted struct {
	Members []config.Member `json:"members"`           // including the joiner
	Within  time.Duration   `json:"withinNanoseconds"` // how long the joiner may take to catch up
}

// Failed is the answer to a refused request of either step.
type Failed struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
	Retry bool   `json:"retry,omitempty"`

	Source string `json:"source,omitempty"` // see Refusal
}
