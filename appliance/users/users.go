// Package users keeps the ledger of certificates with which users come to the API server, and
// the revocations.
//
//	l := users.New(users.Config{…})
//	go l.Run(ctx)
//	go l.Follow(ctx)
//	err := l.Signed(ctx, record)   // before a certificate leaves: see package apiserver
//	l.Seen(cert)                   // the API server has accepted one
//	err = l.Revoked.Refuses(cert)  // for each request
//
// A certificate is recorded when kthwd kubeconfig create makes it and when it is signed for a
// CertificateSigningRequest, each time before anybody has it; and one that was signed elsewhere,
// such as by kthwd pki, when an API server accepts it for the first time. A record is deleted
// after its certificate has expired.
//
// A revocation is about one serial number, or about all certificates of a user that begin
// before it. The certificates of nodes, of controllers and of the control plane's programs are
// not revoked here: see Revocable. Those of other components, such as system:kube-proxy, are
// revoked one by one.
//
// A load balancer renews its own certificate: MayRenew is the policy.
//
// The records in etcd are below /kthwd/certificates/ and /kthwd/revoked/.
package users

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
)

const (
	ledgerPrefix  = "/kthwd/certificates/"    // followed by a serial number
	revokedPrefix = "/kthwd/revoked/"         // the common part of the two below
	serialsPrefix = revokedPrefix + "serial/" // followed by a serial number
	usersPrefix   = revokedPrefix + "user/"   // followed by the name of a user
)

// Signers of certificates that are not the name of one of Kubernetes' signers.
const (
	SignerKthwd   = "kthwd"
	SignerUnknown = "" // it was seen when it was used
)

// Certificate is the record of a certificate.
type Certificate struct {
	Serial    string    `json:"serial"` // in hexadecimal digits
	User      string    `json:"user"`
	Groups    []string  `json:"groups,omitempty"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Signer    string    `json:"signer,omitempty"`
	Request   string    `json:"request,omitempty"` // the name of its CertificateSigningRequest
	AskedBy   string    `json:"askedBy,omitempty"` // who asked for it
	At        time.Time `json:"recorded"`

	Credential string `json:"credential,omitempty"` // as the API server calls it: a hash of the certificate
}

// RecordOf returns the record of a certificate, without Signer, Request and AskedBy.
func RecordOf(cert *x509.Certificate) Certificate {
	return Certificate{
		Serial: Serial(cert), User: cert.Subject.CommonName, Groups: cert.Subject.Organization,
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(), At: time.Now().UTC().Truncate(time.Second),
		Credential: pki.CredentialOf(cert),
	}
}

// Serial returns the serial number of a certificate as the ledger has it.
func Serial(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

var programs = pki.ProgramUsers()

const (
	nodeUser        = "system:node:" // followed by the name of the node
	componentPrefix = "system:"      // of the users of Kubernetes' own components
)

// revocable is for each request.
func revocable(user string) bool {
	return !strings.HasPrefix(user, nodeUser) && !slices.Contains(programs, user)
}

// IsComponent reports whether a user is a component of Kubernetes, such as system:kube-proxy. Many
// machines may work with its certificates, so one of these is revoked by its serial number only.
func IsComponent(user string) bool { return strings.HasPrefix(user, componentPrefix) }

// Revocable returns an error if the certificates of a user are not revoked by this package, with
// the way that there is.
func Revocable(user string) error {
	node, isNode := strings.CutPrefix(user, nodeUser)
	switch {
	case isNode:
		return advice.With(advice.Usage(fmt.Errorf("%s is a node", user)), "remove it: kthwd node remove "+node)
	case !revocable(user):
		return advice.With(advice.Usage(fmt.Errorf("%s is a part of the control plane", user)), "of a machine that is lost, see A lost controller in docs/security.md")
	}
	return nil
}

// State says whether a certificate is accepted.
type State string

// The states.
const (
	Valid   State = "valid"
	Expired State = "expired"
	Revoked State = "revoked"
)

// Entry is a line of the list.
type Entry struct {
	Certificate
	State   State     `json:"state"`
	Revoked time.Time `json:"revoked,omitzero"` // when it was
}

// List returns the certificates of the ledger, by user and end. Without all, it leaves out those
// that Revocable names, and those that have expired.
func List(ctx context.Context, etcd *clientv3.Client, all bool) ([]Entry, error) {
	certificates, err := read[Certificate](ctx, etcd, ledgerPrefix)
	if err != nil {
		return nil, err
	}
	revoked, err := readRevocations(ctx, etcd)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	list := []Entry{}
	for _, c := range certificates {
		e := Entry{Certificate: c, State: Valid}
		switch at, is := revoked.of(c.Serial, c.User, c.NotBefore); {
		case is:
			e.State, e.Revoked = Revoked, at
		case now.After(c.NotAfter):
			e.State = Expired
		}
		if all || revocable(c.User) && now.Before(c.NotAfter) {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.User, b.User), a.NotAfter.Compare(b.NotAfter), cmp.Compare(a.Serial, b.Serial))
	})
	return list, nil
}

// read returns the values below a prefix, by the rest of their keys. It leaves out what is none.
func read[T any](ctx context.Context, etcd *clientv3.Client, prefix string) (map[string]T, error) {
	answer, err := etcd.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	all := map[string]T{}
	for _, kv := range answer.Kvs {
		var v T
		if json.Unmarshal(kv.Value, &v) == nil {
			all[strings.TrimPrefix(string(kv.Key), prefix)] = v
		}
	}
	return all, nil
}

// Record writes the record of a certificate, unless there is one of its serial number.
func Record(ctx context.Context, etcd *clientv3.Client, c Certificate) error {
	key := ledgerPrefix + c.Serial
	there, err := etcd.Get(ctx, key, clientv3.WithCountOnly())
	if err != nil || there.Count > 0 {
		return err
	}
	value, err := json.Marshal(c)
	if err != nil {
		return err
	}
	_, err = etcd.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).Then(clientv3.OpPut(key, string(value))).Commit()
	return err
}

// Forget deletes the record of a certificate that nobody has received.
func Forget(ctx context.Context, etcd *clientv3.Client, c Certificate) error {
	_, err := etcd.Delete(ctx, ledgerPrefix+c.Serial)
	return err
}

// ErrUnlisted means that the ledger has no certificate that is meant.
var ErrUnlisted = errors.New("the ledger has no certificate of it")
