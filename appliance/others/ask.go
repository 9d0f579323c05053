package others

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"

	"kthwd/appliance/etcd/peers"
	"kthwd/appliance/status"
)

// maxAnswer is the size of an answer in bytes beyond which it is not read.
const maxAnswer = 256 << 10

// errWaits is the state of a member that serves its peers, and no clients.
var errWaits = errors.New("it runs, and waits for its first quorum")

// ask requests the state of another controller at its client URLs, one after the other, and
// tells it this one's.
func ask(ctx context.Context, t http.RoundTripper, m peer, tell []byte) (status.Controller, error) {
	failed := errors.New("it has not told its address: it has not started yet, or waits for its first quorum")
	for _, u := range m.clients {
		body, err := request(ctx, t, http.MethodPost, u+Path, tell)
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
		if _, err := request(ctx, t, http.MethodGet, u+"/version", nil); err == nil {
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

func request(ctx context.Context, t http.RoundTripper, method, url string, send []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(send))
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

// Exchange makes this controller tell the others its state, which own returns: in its
// questions, and in its answers at Path. Call it before the member and Run.
func (o *Others) Exchange(own func() status.Controller) {
	o.own = own
	o.state = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !o.ofController(r.TLS) {
			if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
				o.log.Debug("state not passed on", "to", r.RemoteAddr, "certificate", peers.SubjectOf(r.TLS.PeerCertificates[0]))
			}
			http.Error(w, notController, http.StatusForbidden)
			return
		}
		o.answer(w, r)
	})
	o.member.Handle(Path, o.state)
}

// answer tells a controller the state of this one, and keeps that of the other.
func (o *Others) answer(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
	case http.MethodPost:
		o.hear(io.LimitReader(r.Body, maxAnswer))
	default:
		http.Error(w, "GET and POST only", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(o.own()) // it fails only when the other has gone
}

// hear keeps the state that another controller tells by itself. What is no member's state
// is ignored.
func (o *Others) hear(body io.Reader) {
	var c status.Controller
	if json.NewDecoder(body).Decode(&c) != nil {
		return
	}
	members := o.members()
	i := slices.IndexFunc(members, func(m peer) bool { return types.ID(m.id).String() == c.Member })
	if i < 0 {
		return
	}
	o.note(members[i], c.From(members[i].name), nil)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told[members[i].id] = time.Now()
}

// ownState is the state of this controller, as it is told to others; nothing before Exchange.
func (o *Others) ownState() []byte {
	if o.own == nil {
		return nil
	}
	data, err := json.Marshal(o.own())
	if err != nil {
		o.log.Debug("state not told", "err", err)
	}
	return data
}
