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
	answerTimeout = 5 * time.Second // of a list, and of the beginning of a watch
	watchTimeout  = 5 * time.Minute // a watch ends after this to twice as much, and is begun again where it ended
	shortWatch    = time.Second     // one that ended sooner, and said nothing, was none
)

// servers are the places to ask, in order: the kubeconfig's, then the backends
// that are known. The latter must have a certificate for the name that the
// kubeconfig expects, or else for their own.
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

// follow lists and watches at one server, until that fails. followed tells whether
// a list and a watch could be had.
func (d *Discovery) follow(ctx context.Context, server *rest.Config) (followed bool, err error) {
	followed, err = d.followAs(ctx, server)
	var other x509.HostnameError
	if errors.As(err, &other) && server != d.cluster && server.ServerName != "" && d.cluster.ServerName == "" {
		own := rest.CopyConfig(server)
		own.ServerName = ""
		followed, err = d.followAs(ctx, own)
	}
	if err != nil && ctx.Err() == nil && !expired(err) {
		d.count(apiErrors)
	}
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err // without the long address
	}
	return followed, err
}

func (d *Discovery) followAs(ctx context.Context, server *rest.Config) (followed bool, err error) {
	api, hangUp, err := connect(server)
	if err != nil {
		return false, err
	}
	defer hangUp()
	version, err := d.list(ctx, api)
	if err != nil {
		return false, err
	}
	for {
		w, err := open(ctx, api, version)
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
	}
}

// connect makes a client with connections of its own, which hangUp ends: those
// that client-go shares would outlive Run, and hold up the drain of a load balancer
// that they go through. HTTP/1.1 for the same reason: a watch that is given
// up ends its connection.
func connect(server *rest.Config) (api rest.Interface, hangUp func(), err error) {
	tlsConfig, err := rest.TLSConfigFor(server)
	if err != nil {
		return nil, nil, err
	}
	dialer := net.Dialer{Timeout: dialTimeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}}
	transport := &http.Transport{
		TLSClientConfig: tlsConfig, DialContext: dialer.DialContext, Proxy: http.ProxyFromEnvironment,
		TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: answerTimeout,
	}
	if server.Proxy != nil {
		transport.Proxy = server.Proxy
	}
	wrapped, err := rest.HTTPWrappersForConfig(server, transport)
	if err != nil {
		return nil, nil, err
	}
	client, err := discoveryclient.NewForConfigAndClient(server, &http.Client{Transport: wrapped})
	if err != nil {
		return nil, nil, err
	}
	return client.RESTClient(), transport.CloseIdleConnections, nil
}

// ask begins a request. It is not repeated within, for there may be others to ask.
func ask(api rest.Interface, options metav1.ListOptions) *rest.Request {
	options.LabelSelector = selector
	return api.Get().Namespace(namespace).Resource("endpointslices").VersionedParams(&options, scheme.ParameterCodec).MaxRetries(0)
}

// list replaces what is known of all slices.
func (d *Discovery) list(ctx context.Context, api rest.Interface) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var list discoveryv1.EndpointSliceList
	if err := ask(api, metav1.ListOptions{}).Do(ctx).Into(&list); err != nil {
		return "", err
	}
	d.slices = map[string][]string{}
	for i := range list.Items {
		d.slices[list.Items[i].Name] = backends(&list.Items[i])
	}
	d.apply()
	return list.ResourceVersion, nil
}

// stream is a watch, and how to be done with it.
type stream struct {
	watch.Interface
	stop func()
}

func open(ctx context.Context, api rest.Interface, version string) (stream, error) {
	lasts := watchTimeout + rand.N(watchTimeout)
	ctx, cancel := context.WithTimeout(ctx, lasts+answerTimeout)
	seconds := int64(lasts / time.Second)
	w, err := ask(api, metav1.ListOptions{Watch: true, ResourceVersion: version, AllowWatchBookmarks: true, TimeoutSeconds: &seconds}).Watch(ctx)
	if err != nil {
		cancel()
		return stream{}, err
	}
	return stream{w, func() { cancel(); w.Stop() }}, nil
}

// errNoWatch is returned for a watch that ended before it could be read from.
// rest.Request.Watch returns one, without an error, for a timeout and for a
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
		d.follows(server)
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

// expired tells that the server does not remember as far back as we do.
func expired(err error) bool { return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) }

// backends are the addresses in a slice that are ready, with the port called https.
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

// merge is all slices as one list, in the order of addresses.
func merge(all map[string][]string) (list []string) {
	for _, some := range all {
		list = append(list, some...)
	}
	slices.SortFunc(list, func(a, b string) int {
		return netip.MustParseAddrPort(a).Compare(netip.MustParseAddrPort(b))
	})
	return slices.Compact(list)
}

// hint is advice on why nobody lets itself be followed, for a log.
func hint(err error) []any {
	if text := hintFor(err); text != "" {
		return []any{"hint", text}
	}
	return nil
}

func hintFor(err error) string {
	var unknown x509.UnknownAuthorityError
	switch {
	case has(err, apierrors.IsForbidden):
		return "the user of the kubeconfig must be allowed to get, list and watch endpointslices in the namespace default"
	case has(err, apierrors.IsUnauthorized):
		return "the API server does not know the user of the kubeconfig: its certificate or token may have expired"
	case errors.As(err, &unknown):
		return "the kubeconfig has the CA of another cluster"
	}
	return ""
}

// has looks at each of joined errors, as Kubernetes' predicates do not.
func has(err error, is func(error) bool) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return slices.ContainsFunc(joined.Unwrap(), func(e error) bool { return has(e, is) })
	}
	return is(err)
}
