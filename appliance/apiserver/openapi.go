package apiserver

import (
	"fmt"
	"net/http"
	"sync"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/routes"
)

// leaveOutOpenAPI keeps the API server from building its OpenAPI documents one
// after the other while it prepares to run (apiserver/pkg/server/genericapiserver.go:
// PrepareRun). The function it returns builds and serves the same documents with the
// same code, version 2 beside version 3; it is for the API server in the chain that
// was built meanwhile, before that is prepared.
func leaveOutOpenAPI(config *genericapiserver.Config) (install func(genericapiserver.DelegationTarget) error) {
	config.SkipOpenAPIInstallation = true
	return func(target genericapiserver.DelegationTarget) error {
		server, ok := target.(*genericapiserver.GenericAPIServer)
		if !ok {
			return fmt.Errorf("OpenAPI: the API server behind the aggregator is a %T", target)
		}
		container, mux := server.Handler.GoRestfulContainer, server.Handler.NonGoRestfulMux
		var both sync.WaitGroup
		both.Go(func() {
			server.OpenAPIVersionedService, server.StaticOpenAPISpec = routes.OpenAPI{Config: config.OpenAPIConfig}.InstallV2(container, mux)
		})
		both.Go(func() {
			server.OpenAPIV3VersionedService = routes.OpenAPI{V3Config: config.OpenAPIV3Config}.InstallV3(container, mux)
			renderOpenAPIV3(server.UnprotectedHandler())
		})
		both.Wait()
		return nil
	}
}

// renderOpenAPIV3 asks for the list of documents, which has the hash of each and
// so renders and keeps them all. The aggregator asks the same question next
// (kube-aggregator/pkg/controllers/openapiv3/aggregator/aggregator.go), and would
// wait for the answer with one core idle.
func renderOpenAPIV3(handler http.Handler) {
	if req, err := http.NewRequest(http.MethodGet, "/openapi/v3", nil); err == nil {
		handler.ServeHTTP(discard{}, req)
	}
}

// discard is a response that nobody reads.
type discard http.Header

func (d discard) Header() http.Header { return http.Header(d) }

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func (discard) WriteHeader(int) {}
