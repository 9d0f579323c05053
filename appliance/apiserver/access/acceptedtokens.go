package access

import (
	"net/http"
	"strings"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	apiapp "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// acceptances tells a listener of bearer tokens that were accepted.
type acceptances struct {
	next authenticator.Request
	told func(token, user, address string)
}

// ListenToAcceptances inserts acceptances before the API server's authenticators: the aggregator's,
// which all requests pass, and the one behind it, which only a TokenReview asks
// (kubernetes/pkg/registry/authentication/rest/storage_authentication.go).
func ListenToAcceptances(config *apiapp.Config, told func(token, user, address string)) {
	if told == nil {
		return
	}
	front, reviews := &config.Aggregator.GenericConfig.Authentication, &config.KubeAPIs.ControlPlane.Generic.Authentication
	front.Authenticator = acceptances{front.Authenticator, told}
	reviews.Authenticator = acceptances{reviews.Authenticator, told}
}

// AuthenticateRequest implements authenticator.Request.
func (a acceptances) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	header := req.Header.Get("Authorization") // upstream takes an accepted token out of the header (bearertoken.go)
	response, ok, err := a.next.AuthenticateRequest(req)
	if ok && err == nil && header != "" {
		if fields := strings.Fields(header); len(fields) > 1 && strings.EqualFold(fields[0], "bearer") {
			a.told(fields[1], response.User.GetName(), req.RemoteAddr)
		}
	}
	return response, ok, err
}
