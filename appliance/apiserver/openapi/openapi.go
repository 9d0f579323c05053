// Package openapi serves kube-apiserver's OpenAPI documents, each made when it is first asked for.
// Upstream makes all of them at a start, a quarter of its processor time, and few are ever asked for.
package openapi

import (
	"fmt"
	"log/slog"

	"github.com/emicklei/go-restful/v3"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/cached"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// LeaveOut prevents the API server from building its OpenAPI documents one after
// the other while it prepares to run (apiserver/pkg/server/genericapiserver.go:
// PrepareRun). Call the returned function with the API server of the chain that was built
// meanwhile, before that is prepared: it serves the same documents, built with the same code.
//
// The fields of the server that upstream fills then (OpenAPIVersionedService, StaticOpenAPISpec,
// OpenAPIV3VersionedService) are read of the server for custom resources only
// (apiextensions-apiserver/pkg/apiserver/apiserver.go), and this is another one.
func LeaveOut(config *genericapiserver.Config, log *slog.Logger) (install func(genericapiserver.DelegationTarget) error) {
	config.SkipOpenAPIInstallation = true
	return func(target genericapiserver.DelegationTarget) error {
		server, ok := target.(*genericapiserver.GenericAPIServer)
		if !ok {
			return fmt.Errorf("OpenAPI: the API server behind the aggregator is a %T", target)
		}
		container, mux := server.Handler.GoRestfulContainer, server.Handler.NonGoRestfulMux
		openAPIV2(config.OpenAPIConfig, container.RegisteredWebServices()).RegisterOpenAPIVersionedService("/openapi/v2", mux)
		return newOpenAPIV3(config.OpenAPIV3Config, container.RegisteredWebServices(), log).install(mux)
	}
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
