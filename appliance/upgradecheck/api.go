package upgradecheck

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	answerTime = 20 * time.Second // for one answer of an API server
	answerSize = 256 << 20        // bytes of it
)

// requestedMetric is the metric of the deprecated APIs that were asked for (apiserver/pkg/endpoints/metrics).
const requestedMetric = "apiserver_requested_deprecated_apis"

// API asks API servers as the admin of a cluster.
type API struct {
	client *http.Client
	server string // the one here
}

// NewAPI makes an API from the credentials in a kubeconfig, for the API server at a URL: a
// kubeconfig may name the load balancer. It connects to nothing.
func NewAPI(kubeconfig, server string) (*API, error) {
	c, err := clientcmd.BuildConfigFromFlags(server, kubeconfig)
	if err != nil {
		return nil, err
	}
	if c.Proxy == nil { // the kubeconfig names none
		c.Proxy = http.ProxyURL(nil) // nor does the environment: nothing within the cluster goes through a proxy
	}
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, err
	}
	return &API{client: client, server: strings.TrimSuffix(c.Host, "/")}, nil
}

// Close ends the connections.
func (a *API) Close() { a.client.CloseIdleConnections() }

// get passes the answer of an API server to use.
func (a *API) get(ctx context.Context, server, path string, use func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json, text/plain")
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s%s: %s", server, path, resp.Status)
	}
	return use(io.LimitReader(resp.Body, answerSize))
}

func (a *API) object(ctx context.Context, path string, into any) error {
	return a.get(ctx, a.server, path, func(r io.Reader) error { return json.NewDecoder(r).Decode(into) })
}

// CRDs returns the cluster's CustomResourceDefinitions.
func (a *API) CRDs(ctx context.Context) (all []CRD, err error) {
	var answer struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
			Spec struct {
				Group    string `json:"group"`
				Versions []struct {
					Name   string `json:"name"`
					Served bool   `json:"served"`
				} `json:"versions"`
			} `json:"spec"`
			Status struct {
				Stored []string `json:"storedVersions"`
			} `json:"status"`
		} `json:"items"`
	}
	if err := a.object(ctx, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &answer); err != nil {
		return nil, err
	}
	for _, i := range answer.Items {
		c := CRD{Name: i.Metadata.Name, Group: i.Spec.Group, Versions: map[string]bool{}, Stored: i.Status.Stored}
		for _, v := range i.Spec.Versions {
			c.Versions[v.Name] = v.Served
		}
		all = append(all, c)
	}
	return all, nil
}

// servers returns the API servers of the cluster, the one here first.
func (a *API) servers(ctx context.Context) (all []string, err error) {
	var slices struct {
		Items []struct {
			Endpoints []struct {
				Addresses []string `json:"addresses"`
			} `json:"endpoints"`
			Ports []struct {
				Port int `json:"port"`
			} `json:"ports"`
		} `json:"items"`
	}
	if err := a.object(ctx, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io/service-name=kubernetes", &slices); err != nil {
		return nil, err
	}
	for _, s := range slices.Items {
		for _, e := range s.Endpoints {
			for _, address := range e.Addresses {
				for _, p := range s.Ports {
					all = append(all, "https://"+net.JoinHostPort(address, strconv.Itoa(p.Port)))
				}
			}
		}
	}
	if len(all) == 0 { // as for one that advertises a loopback address
		all = []string{a.server}
	}
	return all, nil
}

// Asked asks every API server of the cluster for the deprecated APIs that clients have requested.
func (a *API) Asked(ctx context.Context) (Asked, error) {
	asked := Asked{APIs: map[DeprecatedAPI]bool{}}
	servers, err := a.servers(ctx)
	if err != nil {
		return asked, err
	}
	for _, s := range servers {
		err := a.get(ctx, s, "/metrics", func(r io.Reader) error { return readAsked(r, asked.APIs) })
		if err != nil {
			asked.Silent = append(asked.Silent, strings.TrimPrefix(s, "https://"))
			continue
		}
		asked.Servers++
	}
	if asked.Servers == 0 {
		return asked, fmt.Errorf("no API server answers: %s", list(asked.Silent))
	}
	return asked, nil
}

// readAsked reads the one metric from the text of all, which has hundreds of thousands of lines.
func readAsked(in io.Reader, into map[DeprecatedAPI]bool) error {
	var own bytes.Buffer
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if line := lines.Bytes(); bytes.HasPrefix(bytes.TrimPrefix(line, []byte("# TYPE ")), []byte(requestedMetric)) {
			own.Write(line)
			own.WriteByte('\n')
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(&own)
	if err != nil {
		return err
	}
	for _, m := range families[requestedMetric].GetMetric() {
		if m.GetGauge().GetValue() > 0 {
			into[DeprecatedAPI{Group: label(m, "group"), Version: label(m, "version"), Resource: label(m, "resource"), Removed: label(m, "removed_release")}] = true
		}
	}
	return nil
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}
