package apiserver

import (
	"fmt"
	"net/http"

	"github.com/emicklei/go-restful/v3"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/cached"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// leaveOutOpenAPI prevents the API server from building its OpenAPI documents one after
// the other while it prepares to run (apiserver/pkg/server/genericapiserver.go:
// PrepareRun). Call the returned function with the API server of the chain that was built
// meanwhile, before that is prepared: it serves the same documents, built with the same code.
func leaveOutOpenAPI(config *genericapiserver.Config) (install func(genericapiserver.DelegationTarget) error) {
	config.SkipOpenAPIInstallation = true
	return func(target genericapiserver.DelegationTarget) error {
		server, ok := target.(*genericapiserver.GenericAPIServer)
		if !ok {
			return fmt.Errorf("OpenAPI: the API server behind the aggregator is a %T", target)
		}
		container, mux := server.Handler.GoRestfulContainer, server.Handler.NonGoRestfulMux
		openAPIV2(config.OpenAPIConfig, container.RegisteredWebServices()).RegisterOpenAPIVersionedService("/openapi/v2", mux)
		server.OpenAPIV3VersionedService = routes.OpenAPI{V3Config: config.OpenAPIV3Config}.InstallV3(container, mux)
		renderOpenAPIV3(server.UnprotectedHandler())
		return nil
	}
}

// openAPIV2 serves the document of version 2, which is built when it is first asked for: the
// aggregator asks when one of its own clients does (kube-aggregator/pkg/controllers/openapi/
// aggregator/aggregator.go), and kubectl asks for version 3. The document takes a tenth of the
// processor time of a start, and memory from then on. The fields OpenAPIVersionedService and
// StaticOpenAPISpec, which upstream's InstallV2 fills (apiserver/pkg/server/routes/openapi.go),
// are read of the server for custom resources only, and this is another one.
func openAPIV2(config *common.Config, services []*restful.WebService) *handler.OpenAPIService {
	return handler.NewOpenAPIServiceLazy(cached.Once(cached.Func(func() (*spec.Swagger, string, error) {
		document, err := builder.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices(services), config)
		if err != nil {
			return nil, "", err
		}
		document.Definitions = handler.PruneDefaults(document.Definitions)
		return document, "built once", nil
	})))
}

// renderOpenAPIV3 requests the list of documents. The list has the hash of each document,
// so this renders and caches them all. The aggregator requests the same list next
// (kube-aggregator/pkg/controllers/openapiv3/aggregator/aggregator.go), and would wait
// for it with one core idle.
func renderOpenAPIV3(handler http.Handler) {
	if req, err := http.NewRequest(http.MethodGet, "/openapi/v3", nil); err == nil {
		handler.ServeHTTP(discard{}, req)
	}
}

// discard is a response writer that drops everything.
type discard http.Header

func (d discard) Header() http.Header { return http.Header(d) }

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func (discard) WriteHeader(int) {}
