// Package openapi serves kube-apiserver's OpenAPI documents, each made when it is first asked for.
// Upstream makes all of them at a start, a quarter of its processor time, and few are ever asked for.
package openapi

import (
	"fmt"
	"log/slog"

	"github.com/emicklei/go-restful/v3"
	endpoints "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/cached"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// Documents are those of one API server.
type Documents struct {
	config *genericapiserver.Config
	log    *slog.Logger
}

// LeaveOut prevents the API server from building its OpenAPI documents one after
// the other while it prepares to run (apiserver/pkg/server/genericapiserver.go:
// PrepareRun). Call Install before the chain is prepared, and Prepared after that.
func LeaveOut(config *genericapiserver.Config, log *slog.Logger) *Documents {
	config.SkipOpenAPIInstallation = true
	keepNoBuilder(config)
	return &Documents{config, log}
}

// Install serves the same documents, built with the same code, by the API server of the chain
// that was built with the configuration.
//
// The fields of the server that upstream fills (OpenAPIVersionedService, StaticOpenAPISpec,
// OpenAPIV3VersionedService) are read of the server for custom resources only
// (apiextensions-apiserver/pkg/apiserver/apiserver.go), and this is another one.
func (d *Documents) Install(target genericapiserver.DelegationTarget) error {
	server, ok := target.(*genericapiserver.GenericAPIServer)
	if !ok {
		return fmt.Errorf("OpenAPI: the API server behind the aggregator is a %T", target)
	}
	container, mux := server.Handler.GoRestfulContainer, server.Handler.NonGoRestfulMux
	openAPIV2(d.config.OpenAPIConfig, container.RegisteredWebServices()).RegisterOpenAPIVersionedService("/openapi/v2", mux)
	return newOpenAPIV3(d.config.OpenAPIV3Config, container.RegisteredWebServices(), d.log).install(mux)
}

// Prepared frees the definitions of all types, with which the servers have built theirs by now; they
// are a twelfth of an empty cluster's heap. A document that is asked for later makes them again.
// Call it before the servers run.
func (d *Documents) Prepared() { d.config.OpenAPIV3Config.Definitions = nil }

// keepNoBuilder lets the collector have the definitions of all types that a builder has made for
// itself. Where a configuration has no function for the tags of a route, the builder gives it one that
// keeps the builder (kube-openapi/pkg/builder/openapi.go, builder3/openapi.go: newOpenAPI). This
// one does the same: it calls the function that genericapiserver.DefaultOpenAPIConfig names.
func keepNoBuilder(config *genericapiserver.Config) {
	ofRoute := func(r common.Route) (string, []string, error) {
		adapter, ok := r.(*restfuladapter.RouteAdapter)
		if !ok {
			return "", nil, fmt.Errorf("OpenAPI: the route %s is a %T", r.Path(), r)
		}
		return endpoints.GetOperationIDAndTags(adapter.Route)
	}
	config.OpenAPIConfig.GetOperationIDAndTagsFromRoute = ofRoute
	config.OpenAPIV3Config.GetOperationIDAndTagsFromRoute = ofRoute
}

// openAPIV2 serves the document of version 2, which is built when it is first asked for: the
// aggregator asks when one of its own clients does (kube-aggregator/pkg/controllers/openapi/
// aggregator/aggregator.go), and kubectl asks for version 3. The document takes a tenth of the
// processor time of a start, and memory from then on.
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
