// Package workers lets machines join a cluster as worker nodes, without a key that travels.
//
// A token is upstream's bootstrap token: a Secret that kube-apiserver accepts as a bearer
// token, and with which kube-controller-manager signs the ConfigMap cluster-info, so that a
// machine that has the token knows the cluster when it sees it. CreateToken makes one, Open
// gives the bearers of tokens the right to ask for a certificate, and Publish writes
// cluster-info.
//
// A Desk decides about the requests. It runs in each controller; what two decide at once is the
// same, and the second write changes nothing.
//
//	d := workers.New(workers.Config{…})
//	go d.Run(ctx)
//	err := d.Admit(ctx, request) // while the request is created: see package apiserver
//
// Upstream approves each request of a bootstrapper, whichever name it is for. A Desk approves
// those that the token is for, and none for a node that exists: with its name come its pods'
// Secrets. Nobody upstream approves serving certificates; a Desk does for a node's own name
// and addresses. Nothing is denied: what is not approved stays pending, with an Event.
//
// Removals has the nodes that were removed, and when: the API server refuses their certificates
// of before.
//
// The records in etcd are below /kthwd/nodes/, /kthwd/node-tokens/ and /kthwd/removed-nodes/.
package workers

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Group is the group of the bearers of tokens.
const Group = "system:bootstrappers:kthwd:nodes"

// Names that upstream gives nodes and the bearers of tokens.
const (
	nodeUser  = "system:node:"
	nodeGroup = "system:nodes"
)

const (
	nodesPrefix   = "/kthwd/nodes/"         // followed by the name of a node
	tokensPrefix  = "/kthwd/node-tokens/"   // followed by the ID of a token
	removedPrefix = "/kthwd/removed-nodes/" // followed by the name of a node
)

// backdated is how much earlier than now the certificates of kube-controller-manager begin
// (pkg/controller/certificates/signer/signer.go), and a minute for clocks that differ.
const backdated = 6 * time.Minute

// joined is the record of a node that has a certificate because of a token.
type joined struct {
	Token  string    `json:"token"`            // its ID
	Ranges []string  `json:"ranges,omitempty"` // in which its addresses must be; none for any
	At     time.Time `json:"at"`
}

// tokenUse is the record of a token that was used.
type tokenUse struct {
	Nodes []string `json:"nodes"`
}

// removal is the record of a node that was removed.
type removal struct {
	At time.Time `json:"at"`
}

// NodeOf returns the name of the node that a certificate is for; "" if it is not a node's.
func NodeOf(cert *x509.Certificate) string {
	name, _ := strings.CutPrefix(cert.Subject.CommonName, nodeUser)
	if name == cert.Subject.CommonName {
		return ""
	}
	return name
}

// get reads the JSON value of a key. It returns its revision, 0 if there is no such key.
func get(ctx context.Context, etcd *clientv3.Client, key string, into any) (revision int64, err error) {
	answer, err := etcd.Get(ctx, key)
	if err != nil || len(answer.Kvs) == 0 {
		return 0, err
	}
	if err := json.Unmarshal(answer.Kvs[0].Value, into); err != nil {
		return 0, fmt.Errorf("%s: %w", key, err)
	}
	return answer.Kvs[0].ModRevision, nil
}

// put writes a JSON value.
func put(key string, value any) clientv3.Op {
	data, _ := json.Marshal(value) // of structs of strings and times
	return clientv3.OpPut(key, string(data))
}
