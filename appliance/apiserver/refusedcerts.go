package apiserver

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"k8s.io/apiserver/pkg/server/healthz"

	"kthwd/appliance/refused"
)

// loadRefused reads which certificates are refused, before the first request. If it fails,
// those that may be are refused until the records are read.
func (a *Server) loadRefused(ctx context.Context) {
	server := a.etcd.Running()
	if server == nil {
		return
	}
	for _, l := range a.lists {
		if err := l.Load(ctx, server); err != nil {
			a.log.Warn("it is not known yet which certificates are refused: no client with such a certificate is let in", "err", err)
		}
	}
}

// knowsRefused is an additional check of the API server's /readyz: where the lists could not be read
// yet, clients are better served by another controller.
func (a *Server) knowsRefused() healthz.HealthChecker {
	return healthz.NamedCheck("kthwd-refused-certificates", func(*http.Request) error {
		if slices.ContainsFunc(a.lists, func(l *refused.List) bool { return !l.Known() }) {
			return errors.New("it is not known yet which certificates are refused")
		}
		return nil
	})
}
