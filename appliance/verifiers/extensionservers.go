// Package verifiers finds the servers that verify the API server by a CA that is replaced: the
// kubelets of all nodes, and extension API servers. It takes a CA out of what extension API servers read it
// from, once no API server has it any longer.
package verifiers

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"kthwd/appliance/advice"
	"kthwd/appliance/carotation/handshake"
	"kthwd/appliance/pki"
)

// ExtensionServers lists every endpoint of every extension API server, as the aggregator finds them.
func ExtensionServers(ctx context.Context, client kubernetes.Interface) (all []handshake.Verifier, err error) {
	data, err := client.Discovery().RESTClient().Get().AbsPath("/apis/apiregistration.k8s.io/v1/apiservices").
		SetHeader("Accept", "application/json").DoRaw(ctx)
	var list apiregistrationv1.APIServiceList
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("the extension API servers are not known: %w", err)
	}
	for _, a := range list.Items {
		service := a.Spec.Service
		if service == nil { // the API server's own
			continue
		}
		v := handshake.Verifier{
			Name: a.Name, Host: service.Name + "." + service.Namespace + ".svc", User: pki.NameHealth,
			Path: "/apis/" + a.Spec.Group + "/" + a.Spec.Version,
		}
		addresses, err := endpointsOf(ctx, client, service)
		switch {
		case err != nil:
			v.Error = err.Error()
		case len(addresses) == 0:
			v.Error = fmt.Sprintf("its service %s/%s has no endpoint that is ready", service.Namespace, service.Name)
		case len(addresses) == 1:
			v.Address = addresses[0]
		}
		if len(addresses) < 2 {
			all = append(all, v)
			continue
		}
		for _, address := range addresses {
			v.Name, v.Address = a.Name+" at "+address, address
			all = append(all, v)
		}
	}
	return all, nil
}

// endpointsOf lists the addresses behind the port of a service, HOST:PORT.
func endpointsOf(ctx context.Context, client kubernetes.Interface, of *apiregistrationv1.ServiceReference) (all []string, err error) {
	service, err := client.CoreV1().Services(of.Namespace).Get(ctx, of.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	name, found := portName(service, of.Port)
	if !found {
		return nil, fmt.Errorf("its service %s/%s does not have its port", of.Namespace, of.Name)
	}
	slices, err := client.DiscoveryV1().EndpointSlices(of.Namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + of.Name})
	if err != nil {
		return nil, err
	}
	for _, s := range slices.Items {
		for _, p := range s.Ports {
			if p.Port == nil || (p.Name != nil && *p.Name != name) || (p.Name == nil && name != "") {
				continue
			}
			for _, e := range s.Endpoints {
				if ready := e.Conditions.Ready; len(e.Addresses) > 0 && (ready == nil || *ready) {
					all = append(all, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	return all, nil
}

// portName is the name of a service's port; 443 is the default of an APIService.
func portName(service *corev1.Service, port *int32) (name string, found bool) {
	wanted := int32(443)
	if port != nil {
		wanted = *port
	}
	for _, p := range service.Spec.Ports {
		if p.Port == wanted {
			return p.Name, true
		}
	}
	return "", false
}

// The ConfigMap from which extension API servers know whom to believe. API servers add their CAs to it, and
// take none out before it has expired (pkg/controlplane/controller/clusterauthenticationtrust/
// cluster_authentication_trust_controller.go:combineCertLists).
const (
	trustNamespace = "kube-system"
	trustName      = "extension-apiserver-authentication"
)

// Unpublish takes a CA out of that ConfigMap. No API server has it any longer, so that none adds it again.
func Unpublish(ctx context.Context, client kubernetes.Interface, key string, ca *x509.Certificate) error {
	maps := client.CoreV1().ConfigMaps(trustNamespace)
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		m, err := maps.Get(ctx, trustName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil // which an API server makes again, without it
		}
		if err != nil {
			return err
		}
		rest, others := pki.WithoutCA([]byte(m.Data[key]), ca)
		switch {
		case len(rest) == len(m.Data[key]):
			return nil
		case others == 0:
			return advice.With(errors.New(key+" has no other CA"), "kthwd status says whether the API server is ready, which adds its own")
		}
		m.Data[key] = string(rest)
		_, err = maps.Update(ctx, m, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("take the CA out of the ConfigMap %s/%s: %w", trustNamespace, trustName, err)
	}
	return nil
}
