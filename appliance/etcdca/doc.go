// Package etcdca moves a running cluster from one CA for everything to a CA of etcd's own.
//
//	m := etcdca.New(etcdca.Config{Layout: layout, Etcd: member, …}) // after pki.Ensure
//	go m.Run(ctx)                                                   // answers the requests of the others
//
// kthwd pki split-etcd-ca asks the kthwd on one controller for the next step (Path). A
// controller passes through the stages of pki.Stage, and each takes effect with its next
// start, because etcd reads its CAs then. The order is safe because a step waits for the
// others: a controller shows a certificate of the new CA only when all others trust that
// CA, and stops trusting the old one only when all others show a certificate of the new
// one. What the others trust and show is taken from a TLS handshake with each of them,
// never from a record, so a controller that was set back or has not been restarted counts
// as what it is.
//
// The controllers exchange only what is public, through etcd: the certificate of the new
// CA, requests for certificates, and the certificates. Each value has a seal like a join's,
// so write access to etcd is not enough to have a certificate signed. Private keys stay
// where they are made; etcd-ca-key.pem is on the controller that began.
//
// The package restarts nothing, and cannot move a controller whose user has set etcd's
// files with --etcd-arg.
package etcdca
