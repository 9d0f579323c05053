package openapi

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"weak"

	"github.com/emicklei/go-restful/v3"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// knownHashes has a line for each document of version 3 of a kthwd that make build has made: its
// group and version, the key of its sources, its hash. make golden writes it, by TestKubeconfig.
//
//go:embed openapi.hashes
var knownHashes string

const openAPIV3Root = "/openapi/v3"

// openAPIV3 serves the OpenAPI documents of version 3, one for each group and version, and the
// list of them, as routes.OpenAPI does. The list has the hash of each document, and the aggregator
// asks for it at the start and each second (kube-aggregator/pkg/controllers/openapiv3/
// aggregator/aggregator.go), so that upstream builds and renders all documents at the start: a
// sixth of its processor time, for documents that are asked for one at a time, if at all. This one
// knows the hashes, and makes a document when it is asked for. A document whose sources
// it does not know, such as one for other feature gates, is made at the start.
type openAPIV3 struct {
	config   *common.OpenAPIV3Config
	log      *slog.Logger
	services map[string]*restful.WebService // by group and version, such as apis/apps/v1

	building    sync.Mutex
	documents   map[string]http.Handler
	definitions weak.Pointer[map[string]common.OpenAPIDefinition] // until the next collection

	list     []byte
	etag     string
	modified time.Time
}

func newOpenAPIV3(config *common.OpenAPIV3Config, services []*restful.WebService, log *slog.Logger) *openAPIV3 {
	o := &openAPIV3{config: config, log: log, services: map[string]*restful.WebService{}, documents: map[string]http.Handler{}}
	for _, service := range services {
		o.services[strings.TrimPrefix(service.RootPath(), "/")] = service
	}
	return o
}

// install makes the list, and serves it and the documents.
func (o *openAPIV3) install(mux *mux.PathRecorderMux) error {
	known := map[string]string{}
	for line := range strings.Lines(knownHashes) {
		if f := strings.Fields(line); len(f) == 3 {
			known[f[1]] = f[2]
		}
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	list := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	for group, service := range o.services {
		all.Go(func() {
			key := keyOf(o.config, service)
			hash, isKnown := known[key]
			if !isKnown {
				var err error
				if hash, err = o.hash(group); err != nil { // upstream leaves such a one out, too
					o.log.Error("OpenAPI document left out", "group", group, "err", err)
					return
				}
			}
			o.log.Debug("OpenAPI document", "key", key, "group", group, "hash", hash, "known", isKnown)
			mu.Lock()
			defer mu.Unlock()
			at := url.URL{Path: path.Join(openAPIV3Root, group), RawQuery: url.Values{"hash": {hash}}.Encode()}
			list.Paths[group] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: at.String()}
		})
	}
	all.Wait()
	data, err := json.Marshal(list)
	if err != nil {
		return err
	}
	o.list, o.etag, o.modified = data, fmt.Sprintf("%X", sha512.Sum512(data)), time.Now()
	mux.HandleFunc(openAPIV3Root, o.serveList)
	mux.HandlePrefix(openAPIV3Root+"/", http.HandlerFunc(o.serveDocument))
	return nil
}

func (o *openAPIV3) serveList(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Etag", strconv.Quote(o.etag))
	w.Header().Set("Content-Type", "application/json")
	http.ServeContent(w, req, openAPIV3Root, o.modified, bytes.NewReader(o.list))
}

func (o *openAPIV3) serveDocument(w http.ResponseWriter, req *http.Request) {
	document := o.document(strings.TrimPrefix(req.URL.Path, openAPIV3Root+"/"))
	if document == nil {
		http.NotFound(w, req)
		return
	}
	document.ServeHTTP(w, req)
}

// document returns upstream's handler of one group and version, built when it is first asked for;
// nil if there is none.
func (o *openAPIV3) document(group string) http.Handler {
	service, exists := o.services[group]
	if !exists {
		return nil
	}
	o.building.Lock()
	defer o.building.Unlock()
	if o.documents[group] == nil {
		alone, handler := restful.NewContainer().Add(service), mux.NewPathRecorderMux("openapi/"+group)
		config := *o.config
		config.Definitions = withOwnExtensions(o.allDefinitions())
		routes.OpenAPI{V3Config: &config}.InstallV3(alone, handler)
		o.documents[group] = handler
	}
	return o.documents[group]
}

// allDefinitions returns those of all types, also after Prepared. It needs the lock.
func (o *openAPIV3) allDefinitions() map[string]common.OpenAPIDefinition {
	if o.config.Definitions != nil {
		return o.config.Definitions
	}
	if all := o.definitions.Value(); all != nil {
		return *all
	}
	all := o.config.GetDefinitions(func(name string) spec.Ref { // as in apiserver/pkg/server/config.go:DefaultOpenAPIV3Config
		definition, _ := o.config.GetDefinitionName(name)
		return spec.MustCreateRef("#/components/schemas/" + common.EscapeJsonPointer(definition))
	})
	o.definitions = weak.Make(&all)
	return all
}

// withOwnExtensions returns the definitions with a copy of each one's extensions. Upstream's builder
// writes to these (kube-openapi/pkg/builder3/openapi.go: buildDefinitionRecursively), and a document
// that was built before reads them when it is rendered, maybe at the same time.
func withOwnExtensions(all map[string]common.OpenAPIDefinition) map[string]common.OpenAPIDefinition {
	own := make(map[string]common.OpenAPIDefinition, len(all))
	for name, d := range all {
		d.Schema.Extensions = maps.Clone(d.Schema.Extensions)
		own[name] = d
	}
	return own
}

// hash renders a document.
func (o *openAPIV3) hash(group string) (string, error) {
	req, err := http.NewRequest(http.MethodHead, openAPIV3Root+"/"+group, nil)
	if err != nil {
		return "", err
	}
	w := discard{}
	o.document(group).ServeHTTP(w, req)
	hash, err := strconv.Unquote(http.Header(w).Get("Etag"))
	if err != nil {
		return "", errors.New("it has no hash, because it could not be built")
	}
	return hash, nil
}

// discard is a response writer that drops the body.
type discard http.Header

func (d discard) Header() http.Header { return http.Header(d) }

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func (discard) WriteHeader(int) {}

// keyOf tells the sources of a document from others: all that upstream's builder sees of the
// routes, and what of the settings is in it. The types that it describes are a part of the binary,
// like the known hashes.
func keyOf(config *common.OpenAPIV3Config, service *restful.WebService) string {
	var k sources
	k.add(strconv.FormatBool(utilfeature.DefaultFeatureGate.Enabled(features.OpenAPIEnums)))
	info, _ := json.Marshal(config.Info) // a type of strings
	k.add(string(info))
	for _, container := range restfuladapter.AdaptWebServices([]*restful.WebService{service}) {
		k.add(container.RootPath())
		k.parameters(container.PathParameters())
		for _, r := range container.Routes() {
			k.add(r.Method(), r.Path(), r.OperationName(), r.Description(), fmt.Sprint(r.Metadata()), typeOf(r.RequestPayloadSample()), typeOf(r.ResponsePayloadSample()))
			k.list(r.Consumes())
			k.list(r.Produces())
			k.parameters(r.Parameters())
			answers := r.StatusCodeResponses()
			slices.SortFunc(answers, func(a, b common.StatusCodeResponse) int { return a.Code() - b.Code() })
			for _, a := range answers {
				k.add(strconv.Itoa(a.Code()), a.Message(), typeOf(a.Model()))
			}
		}
	}
	sum := sha256.Sum256(k.text)
	return hex.EncodeToString(sum[:])
}

func typeOf(sample any) string { return fmt.Sprintf("%T", sample) }

// sources are texts one after the other, each after its length.
type sources struct{ text []byte }

func (k *sources) add(all ...string) {
	for _, s := range all {
		k.text = append(binary.AppendUvarint(k.text, uint64(len(s))), s...)
	}
}

func (k *sources) list(all []string) {
	k.text = binary.AppendUvarint(k.text, uint64(len(all)))
	k.add(all...)
}

func (k *sources) parameters(all []common.Parameter) {
	k.text = binary.AppendUvarint(k.text, uint64(len(all)))
	for _, p := range all {
		k.add(p.Name(), p.Description(), p.DataType())
		k.text = append(k.text, byte(p.Kind()), asByte(p.Required()), asByte(p.AllowMultiple()))
	}
}

func asByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}
