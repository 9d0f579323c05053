// Package carotation replaces the cluster's CA, or that of the front proxy or of etcd, while the controllers
// serve.
//
//	r := carotation.New(carotation.Config{CA: carotation.Cluster, Watch: watch, Others: others, …})
//	go r.Run(ctx)
//
// A rotation passes through the stages of Stage. All controllers trust the new CA first, beside the
// old one. A person brings ca.pem to workers and users meanwhile; the next step is refused while a
// kubelet does not accept a certificate of the new CA. Then every controller signs with it: its own
// certificates anew, for the same keys and names, and those that others ask for. Certificates of
// the old CA are accepted, and their users named, until a person has it dropped.
//
// Nothing is restarted but the terms of kube-controller-manager and kube-scheduler, which read the
// CAs at the start of one. That holds because etcd has a CA of its own (package etcdca): without one a rotation is
// refused, for etcd reads its CAs at its start only.
//
// A stage ends when every controller confirms it. A controller looks at its own API server for
// that, in a TLS handshake: which CAs it names, and whose certificate it shows.
//
// The front proxy's CA passes through the same stages, by itself: see authority for the differences. In
// the place of workers there are the extension API servers. Nothing is restarted and no term ends,
// because the API server follows the files.
//
// etcd's CA passes through stages of its own, because etcd reads its CAs at its start only: a person
// restarts every controller before the new CA signs, and again after the old one was dropped. Only a
// handshake with each etcd shows that: the new CA does not sign before all accept its certificates, also with
// force, for members that refuse each other have no quorum.
//
// The state is below /kthwd/ca, /kthwd/front-proxy-ca or /kthwd/etcd-ca in etcd, without any key, and sealed. The new key travels from
// controller to controller, over the connections of package others, whose certificates are of
// etcd's CA: of the old one, as long as a key travels.
package carotation
