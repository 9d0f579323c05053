package openapi

import (
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/emicklei/go-restful/v3"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// thing is the type that the documents of TestDocumentsShareNothing have in common.
type thing struct{}

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
	var services []*restful.WebService
	for _, group := range []string{"apis/a/v1", "apis/b/v1"} {
		service := new(restful.WebService).Path("/" + group)
		service.Route(service.GET("/things").Operation("list").Produces("application/json").Returns(http.StatusOK, "OK", thing{}).
			To(func(*restful.Request, *restful.Response) {}))
		services = append(services, service)
	}
	o := newOpenAPIV3(config, services, slog.New(slog.DiscardHandler))
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
