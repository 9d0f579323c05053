package access

import (
	"net/http"
	"strings"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	apiapp "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// refusals tells a listener of bearer tokens that were not accepted.
type refusals struct {
	next authenticator.Request
	told func(token, address string)
}

// ListenToRefusals inserts refusals before the API server's authenticator.
func ListenToRefusals(config *apiapp.Config, told func(token, address string)) {
	if told == nil {
		return
	}
	auth := &config.Aggregator.GenericConfig.Authentication // all requests pass the aggregator's
	auth.Authenticator = refusals{auth.Authenticator, told}
}

// AuthenticateRequest implements authenticator.Request.
func (r refusals) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	// A token that is accepted is taken out of the header (bearertoken.go).
	response, ok, err := r.next.AuthenticateRequest(req)
	if !ok {
		if fields := strings.Fields(req.Header.Get("Authorization")); len(fields) > 1 && strings.EqualFold(fields[0], "bearer") {
			r.told(fields[1], req.RemoteAddr)
		}
	}
	return response, ok, err
}
