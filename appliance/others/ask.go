package others

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"

	"kthwd/appliance/etcd"
	"kthwd/appliance/status"
)

// maxAnswer is the size of an answer in bytes beyond which it is not read.
const maxAnswer = 256 << 10

// errWaits is the state of a member that serves its peers, and no clients.
var errWaits = errors.New("it runs, and waits for its first quorum")

// ask requests the state of another controller at its client URLs, one after the other.
func ask(ctx context.Context, t http.RoundTripper, m peer) (status.Controller, error) {
	failed := errors.New("it has not told its address: it has not started yet, or waits for its first quorum")
	for _, u := range m.clients {
		body, err := get(ctx, t, u+Path)
		if err != nil {
			failed = err
			continue
		}
		var c status.Controller
		if err := json.Unmarshal(body, &c); err != nil {
			return c, errors.New("its answer is not a controller's state")
		}
		return c.From(m.name), nil
	}
	var no *unexpected
	if !errors.As(failed, &no) && waits(ctx, t, m) {
		failed = errWaits
	}
	return status.Controller{}, failed
}

// waits reports whether a member answers at its peer port.
func waits(ctx context.Context, t http.RoundTripper, m peer) bool {
	for _, u := range m.peers {
		if _, err := get(ctx, t, u+"/version"); err == nil {
			return true
		}
	}
	return false
}

// unexpected is an answer without a state.
type unexpected struct{ code int }

func (u *unexpected) Error() string {
	if u.code == http.StatusNotFound {
		return "it is a kthwd that does not pass on its state"
	}
	return fmt.Sprintf("it answers %d %s", u.code, http.StatusText(u.code))
}

func get(ctx context.Context, t http.RoundTripper, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req) // a redirect is not followed
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = &unexpected{resp.StatusCode}
	}
	return body, err
}

// reason shortens the error of a question.
func reason(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer within " + within.String()
	}
	return err.Error()
}

// Answer makes this controller answer the others at Path, with the state that own
// returns. Call it before the member runs.
func (o *Others) Answer(own func() status.Controller) {
	o.state = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !o.ofController(r.TLS) {
			if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
				o.log.Debug("state not passed on", "to", r.RemoteAddr, "certificate", etcd.SubjectOf(r.TLS.PeerCertificates[0]))
			}
			http.Error(w, notController, http.StatusForbidden)
			return
		}
		if r.Method != http.MethodGet {
			http.Error(w, "GET only", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(own()) // it fails only when the other has gone
	})
	o.member.Handle(Path, o.state)
}
