package openapi

import (
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"weak"

	"github.com/emicklei/go-restful/v3"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	endpoints "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// thing is the type that the documents of TestDocumentsShareNothing have in common.
type thing struct{}

// things are services whose one route answers with a thing.
func things(groups ...string) (services []*restful.WebService) {
	for _, group := range groups {
		service := new(restful.WebService).Path("/" + group)
		service.Route(service.GET("/things").Operation("list "+group).Produces("application/json").Returns(http.StatusOK, "OK", thing{}).
			To(func(*restful.Request, *restful.Response) {}))
		services = append(services, service)
	}
	return services
}

// A document is built while another one is rendered: neither may write to a schema of both. A write
// to a map that another request reads ends the process.
func TestDocumentsShareNothing(t *testing.T) {
	const name, kinds, foreign = "kthwd/appliance/apiserver/openapi.thing", "x-kubernetes-group-version-kind", "x-kubernetes-map-type"
	shared := spec.Extensions{foreign: "atomic", common.ExtensionV2Schema: "old"}
	before := maps.Clone(shared)
	definition := common.OpenAPIDefinition{Schema: spec.Schema{VendorExtensible: spec.VendorExtensible{Extensions: shared}}}
	config := &common.OpenAPIV3Config{
		Info:              &spec.Info{},
		Definitions:       map[string]common.OpenAPIDefinition{name: definition},
		GetDefinitionName: func(string) (string, spec.Extensions) { return "thing", spec.Extensions{kinds: []any{"Thing"}} },
	}
	o := newOpenAPIV3(config, things("apis/a/v1", "apis/b/v1"), slog.New(slog.DiscardHandler))
	for group := range o.services {
		w := httptest.NewRecorder()
		o.document(group).ServeHTTP(w, httptest.NewRequest(http.MethodGet, openAPIV3Root+"/"+group, nil))
		if text := w.Body.String(); !strings.Contains(text, kinds) || !strings.Contains(text, foreign) {
			t.Errorf("%s: got %d %s, want the type with both extensions", group, w.Code, text)
		}
	}
	if !maps.Equal(shared, before) {
		t.Errorf("the schema that all share has become %v", shared)
	}
}

// The definitions of all types stay for no longer than a document needs them.
func TestDefinitionsAreForgotten(t *testing.T) {
	usual := debug.SetGCPercent(-1) // a collection between two documents would have the definitions made once more
	defer debug.SetGCPercent(usual)
	var made []weak.Pointer[[1024]byte] // a part of another type than that of the documents
	definitions := func(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition {
		part := new([1024]byte)
		made = append(made, weak.Make(part))
		other := spec.Schema{VendorExtensible: spec.VendorExtensible{Extensions: spec.Extensions{"x-part": part}}}
		return map[string]common.OpenAPIDefinition{
			"kthwd/appliance/apiserver/openapi.thing": {Schema: spec.Schema{SchemaProps: spec.SchemaProps{Description: "a thing"}}},
			"kthwd/appliance/apiserver/openapi.other": {Schema: other},
		}
	}
	namer := endpoints.NewDefinitionNamer(apiruntime.NewScheme())
	config := &genericapiserver.Config{
		OpenAPIConfig:   genericapiserver.DefaultOpenAPIConfig(definitions, namer),
		OpenAPIV3Config: genericapiserver.DefaultOpenAPIV3Config(definitions, namer),
	}
	d := LeaveOut(config, slog.New(slog.DiscardHandler))
	services := things("apis/a/v1", "apis/b/v1")
	three, mux := newOpenAPIV3(config.OpenAPIV3Config, services, d.log), mux.NewPathRecorderMux("test")
	openAPIV2(config.OpenAPIConfig, services).RegisterOpenAPIVersionedService("/openapi/v2", mux)
	if err := three.install(mux); err != nil { // makes both: it does not know their hashes
		t.Fatal(err)
	}
	d.Prepared()
	three.documents = map[string]http.Handler{}
	for _, path := range []string{"/openapi/v2", openAPIV3Root + "/apis/a/v1", openAPIV3Root + "/apis/b/v1"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "a thing") {
			t.Errorf("%s: got %d %s", path, w.Code, w.Body)
		}
	}
	if len(made) != 3 {
		t.Errorf("the definitions were made %d times, want 3: before, for version 2 and for both of version 3", len(made))
	}
	runtime.GC()
	for i, part := range made {
		if part.Value() != nil {
			t.Errorf("the definitions that were made as number %d are kept", i+1)
		}
	}
	runtime.KeepAlive(three)
	runtime.KeepAlive(config)
	runtime.KeepAlive(mux)
}
