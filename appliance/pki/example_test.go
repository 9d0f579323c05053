package pki_test

import (
	"fmt"

	"kthwd/appliance/pki"
)

// A Layout names the files of a data directory without reading it.
func ExampleLayout() {
	l := pki.Layout{Dir: "/var/lib/kubernetes", EtcdDir: "/srv/etcd"}
	fmt.Println(l.CA())
	fmt.Println(l.Key(pki.NameKubernetes))
	fmt.Println(l.Kubeconfig(pki.NameAdmin))
	fmt.Println(l.Etcd())
	fmt.Println(l.ControlSocket())
	// Output:
	// /var/lib/kubernetes/ca.pem
	// /var/lib/kubernetes/kubernetes-key.pem
	// /var/lib/kubernetes/admin.kubeconfig
	// /srv/etcd
	// /var/lib/kubernetes/run/kthwd.sock
}
