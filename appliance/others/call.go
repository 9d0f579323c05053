package others

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"kthwd/appliance/etcd/peers"
)

// maxCall bounds a request and an answer of Call.
const maxCall = 1 << 20

// Answer is what one other controller has answered to Call.
type Answer struct {
	Name string
	Body []byte
	Err  error // why there is no body
}

// Handle answers other controllers, and nobody else, at a path of the same ports. Call it
// before the member and Run.
func (o *Others) Handle(path string, h http.Handler) {
	guarded := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !o.ofController(r.TLS) {
			if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
				o.log.Debug("not answered", "path", path, "to", r.RemoteAddr, "certificate", peers.SubjectOf(r.TLS.PeerCertificates[0]))
			}
			http.Error(w, notController, http.StatusForbidden)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxCall)
		h.ServeHTTP(w, r)
	})
	o.member.Handle(path, guarded)
	if o.more == nil {
		o.more = map[string]http.Handler{}
	}
	o.more[path] = guarded
}

// Call posts body to the path at every other member, at the same time, and returns their
// answers in the order of their names. It blocks until all have answered or within has
// passed.
func (o *Others) Call(ctx context.Context, path string, body []byte, within time.Duration) []Answer {
	members := o.members()
	all := make([]Answer, len(members))
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	config, noWay := o.connect()
	t := &http.Transport{TLSClientConfig: config, TLSHandshakeTimeout: within, DisableKeepAlives: true} // without a proxy, as the other one
	var wait sync.WaitGroup
	for i, m := range members {
		all[i] = Answer{Name: m.name, Err: noWay}
		if noWay == nil {
			wait.Go(func() { all[i].Body, all[i].Err = callOne(ctx, t, m, path, body) })
		}
	}
	wait.Wait()
	slices.SortFunc(all, func(a, b Answer) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// callOne asks one member at its client URLs, one after the other.
func callOne(ctx context.Context, t http.RoundTripper, m peer, path string, body []byte) ([]byte, error) {
	failed := errors.New("it has not told its address: it has not started yet, or waits for its first quorum")
	for _, u := range m.clients {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		resp, err := t.RoundTrip(req) // a redirect is not followed
		if err != nil {
			if failed = errors.New(reason(err)); ctx.Err() != nil {
				return nil, errors.New("no answer in time")
			}
			continue
		}
		answer, err := io.ReadAll(io.LimitReader(resp.Body, maxCall))
		resp.Body.Close()
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode == http.StatusNotFound:
			return nil, errors.New("it runs an older kthwd, which does not know this request")
		case resp.StatusCode != http.StatusOK:
			return nil, fmt.Errorf("it answers %d %s", resp.StatusCode, strings.TrimSpace(http.StatusText(resp.StatusCode)))
		}
		return answer, nil
	}
	return nil, failed
}
