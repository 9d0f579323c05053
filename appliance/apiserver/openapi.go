package apiserver

import (
	"fmt"
	"net/http"
	"sync"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/routes"
)

// leaveOutOpenAPI prevents the API server from building its OpenAPI documents one after
// the other while it prepares to run (apiserver/pkg/server/genericapiserver.go:
// PrepareRun). Call the returned function with the API server of the chain that was built
// meanwhile, before that is prepared: it builds and serves the same documents with the
// same code, version 2 in parallel with version 3.
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
