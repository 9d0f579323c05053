package discovery

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"
)

const (
	namespace = "default"
	selector  = discoveryv1.LabelServiceName + "=kubernetes"
	portName  = "https"

	dialTimeout   = 3 * time.Second
	answerTimeout = 5 * time.Second // for a list and for the start of a watch
	watchTimeout  = 5 * time.Minute // a watch lasts for one to two times this, and is then continued by the next
	shortWatch    = time.Second     // a watch that ends sooner, without an event, has failed
)

// servers returns the servers to query, in order: that of the kubeconfig, then the known
// backends. A backend must have a certificate for the name that the kubeconfig expects,
// or for its own address.
func servers(cluster *rest.Config, lists ...[]string) []*rest.Config {
	all := []*rest.Config{cluster}
	at, err := url.Parse(cluster.Host)
	if err != nil {
		return all
	}
	seen := []string{cmp.Or(at.Host, cluster.Host)}
	for _, backend := range slices.Concat(lists...) {
		if slices.Contains(seen, backend) {
			continue
		}
		seen = append(seen, backend)
		s := rest.CopyConfig(cluster)
		s.Host = "https://" + backend
		if s.ServerName == "" && !s.Insecure {
			s.ServerName = at.Hostname()
		}
		all = append(all, s)
	}
	return all
}

// follow lists and watches at one server until that fails. followed reports whether a
// list and a watch succeeded.
func (d *Discovery) follow(ctx context.Context, server *rest.Config) (followed bool, err error) {
	followed, err = d.followAs(ctx, server)
	if own := byOwnAddress(d.cluster, server, err); own != nil {
		followed, err = d.followAs(ctx, own)
	}
	if err != nil && ctx.Err() == nil && !expired(err) && !errors.Is(err, errRenewed) {
		d.count(apiErrors)
	}
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err // without the long address
	}
	return followed, err
}

// byOwnAddress returns how to query a server whose certificate lacks the name that the kubeconfig
// expects: by its own address. It returns nil if that is not what err means.
func byOwnAddress(cluster, server *rest.Config, err error) *rest.Config {
	var other x509.HostnameError
	if !errors.As(err, &other) || server == cluster || server.ServerName == "" || cluster.ServerName != "" {
		return nil
	}
	own := rest.CopyConfig(server)
	own.ServerName = ""
	return own
}

func (d *Discovery) followAs(ctx context.Context, server *rest.Config) (followed bool, err error) {
	api, hangUp, err := newClient(server)
	if err != nil {
		return false, err
	}
	defer hangUp()
	renewals := d.renewals.Load()
	version, err := d.list(ctx, api)
	if err != nil {
		return false, err
	}
	for {
		w, err := openWatch(ctx, api, version)
		if err != nil {
			return followed || expired(err), err
		}
		begun := time.Now()
		before := version
		version, err = d.events(ctx, server.Host, w, version)
		w.stop()
		switch {
		case errors.Is(err, errNoWatch):
			return followed, err
		case err != nil:
			return true, err
		case version == before && time.Since(begun) < shortWatch:
			return true, errors.New("the watch ended at once")
		}
		followed = true
		if d.renewals.Load() != renewals {
			return true, errRenewed
		}
	}
}

// errRenewed means that the next watch needs the new certificate.
var errRenewed = errors.New("the certificate is renewed")

// newClient returns a client with its own connections, which hangUp closes. Connections
// shared by client-go would outlive Run, and delay the drain of a load balancer that they
// pass through. The client uses HTTP/1.1 for the same reason: an abandoned watch closes
// its connection.
func newClient(server *rest.Config) (api rest.Interface, hangUp func(), err error) {
	through, hangUp, err := newHTTPClient(server)
	if err != nil {
		return nil, nil, err
	}
	client, err := discoveryclient.NewForConfigAndClient(server, through)
	if err != nil {
		return nil, nil, err
	}
	return client.RESTClient(), hangUp, nil
}

func newHTTPClient(server *rest.Config) (client *http.Client, hangUp func(), err error) {
	tlsConfig, err := rest.TLSConfigFor(server)
	if err != nil {
		return nil, nil, err
	}
	dialer := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}}
	transport := &http.Transport{
		TLSClientConfig: tlsConfig, DialContext: dialer.DialContext, // and no proxy of the environment: an API server is inside the cluster
		TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: answerTimeout,
	}
	if server.Proxy != nil {
		transport.Proxy = server.Proxy
	}
	wrapped, err := rest.HTTPWrappersForConfig(server, transport)
	if err != nil {
		return nil, nil, err
	}
	return &http.Client{Transport: wrapped}, transport.CloseIdleConnections, nil
}

// slicesRequest returns a request for the EndpointSlices, without client-go's retries:
// other servers may answer.
func slicesRequest(api rest.Interface, options metav1.ListOptions) *rest.Request {
	options.LabelSelector = selector
	return api.Get().Namespace(namespace).Resource("endpointslices").VersionedParams(&options, scheme.ParameterCodec).MaxRetries(0)
}

// list replaces all slices.
func (d *Discovery) list(ctx context.Context, api rest.Interface) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var list discoveryv1.EndpointSliceList
	if err := slicesRequest(api, metav1.ListOptions{}).Do(ctx).Into(&list); err != nil {
		return "", err
	}
	d.slices = map[string][]string{}
	for i := range list.Items {
		d.slices[list.Items[i].Name] = backends(&list.Items[i])
	}
	d.apply()
	return list.ResourceVersion, nil
}

// stream is a watch and the function that stops it.
type stream struct {
	watch.Interface
	stop func()
}

func openWatch(ctx context.Context, api rest.Interface, version string) (stream, error) {
	lasts := watchTimeout + rand.N(watchTimeout)
	ctx, cancel := context.WithTimeout(ctx, lasts+answerTimeout)
	seconds := int64(lasts / time.Second)
	w, err := slicesRequest(api, metav1.ListOptions{Watch: true, ResourceVersion: version, AllowWatchBookmarks: true, TimeoutSeconds: &seconds}).Watch(ctx)
	if err != nil {
		cancel()
		return stream{}, err
	}
	return stream{w, func() { cancel(); w.Stop() }}, nil
}

// errNoWatch is returned for a watch that has ended before its first event is read.
// rest.Request.Watch returns such a watch, without an error, for a timeout and for a
// connection that ends early.
var errNoWatch = errors.New("the watch did not begin")

// events applies the events of a watch until it ends, and returns the version to
// continue from. After an error the caller must list again.
func (d *Discovery) events(ctx context.Context, server string, w watch.Interface, version string) (_ string, err error) {
	select {
	case e, more := <-w.ResultChan():
		if !more {
			return version, errNoWatch
		}
		if version, err = d.event(e, version); err != nil {
			return version, err
		}
	default: // it is open and quiet
	}
	for {
		d.noteFollowed(server)
		select {
		case e, more := <-w.ResultChan():
			if !more {
				return version, ctx.Err()
			}
			if version, err = d.event(e, version); err != nil {
				return version, err
			}
		case <-ctx.Done():
			return version, ctx.Err()
		}
	}
}

// event applies one event and returns the version after it.
func (d *Discovery) event(e watch.Event, version string) (string, error) {
	if e.Type == watch.Error {
		return version, apierrors.FromObject(e.Object)
	}
	slice, ok := e.Object.(*discoveryv1.EndpointSlice)
	if !ok {
		return version, fmt.Errorf("the watch sent a %T", e.Object)
	}
	switch e.Type {
	case watch.Added, watch.Modified:
		d.slices[slice.Name] = backends(slice)
		d.apply()
	case watch.Deleted:
		delete(d.slices, slice.Name)
		d.apply()
	}
	return slice.ResourceVersion, nil
}

// expired reports whether the server no longer has the requested resource version.
func expired(err error) bool { return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) }

// backends returns the ready addresses of a slice, with the port named https.
func backends(slice *discoveryv1.EndpointSlice) (all []string) {
	if slice.AddressType != discoveryv1.AddressTypeIPv4 && slice.AddressType != discoveryv1.AddressTypeIPv6 {
		return nil
	}
	for _, p := range slice.Ports {
		if p.Name == nil || *p.Name != portName || p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			continue
		}
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, a := range e.Addresses {
				if ip, err := netip.ParseAddr(a); err == nil {
					all = append(all, netip.AddrPortFrom(ip.Unmap(), uint16(*p.Port)).String())
				}
			}
		}
	}
	return all
}

// merge returns the backends of all slices as one list, sorted by address.
func merge(all map[string][]string) (list []string) {
	for _, some := range all {
		list = append(list, some...)
	}
	slices.SortFunc(list, func(a, b string) int {
		return netip.MustParseAddrPort(a).Compare(netip.MustParseAddrPort(b))
	})
	return slices.Compact(list)
}

// hint returns advice on an error, as attributes for a log.
func hint(err error) []any {
	if text := hintFor(err); text != "" {
		return []any{"hint", text}
	}
	return nil
}

func hintFor(err error) string {
	var unknown x509.UnknownAuthorityError
	switch {
	case anyOf(err, apierrors.IsForbidden):
		return "the user of the kubeconfig must be allowed to get, list and watch endpointslices in the namespace default"
	case anyOf(err, apierrors.IsUnauthorized):
		return "the API server does not accept the user of the kubeconfig: its certificate or token may have expired, or was revoked; make another on a controller: kthwd kubeconfig create"
	case errors.As(err, &unknown):
		return "the kubeconfig has the CA of another cluster"
	}
	return ""
}

// anyOf applies is to each joined error, which Kubernetes' predicates do not do.
func anyOf(err error, is func(error) bool) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return slices.ContainsFunc(joined.Unwrap(), func(e error) bool { return anyOf(e, is) })
	}
	return is(err)
}
